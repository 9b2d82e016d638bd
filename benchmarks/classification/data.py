"""Long-tailed CIFAR as arrays in memory, from torchvision's own layout or from an .npz of tiles."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.classification.settings import NUM_CLASSES
from mbj_plugin.longtail import count_classes, exponential_counts, largest_exponential_counts

FOLDERS = {"cifar10_lt": "cifar-10-batches-py", "cifar100_lt": "cifar-100-python"}


@dataclasses.dataclass(frozen=True)
class Images:
    """A training and a test set. Images are uint8 (N, 32, 32, 3), labels int64 (N,).

    ``train_rank`` numbers the images inside their class: a subset takes the lowest, so subsets are nested.
    """

    train: np.ndarray
    train_labels: np.ndarray
    train_rank: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    source: str

    def long_tailed(self, imbalance_ratio: float, max_count: int | None = None) -> Images:
        """The exponentially long-tailed part of the training set, class 0 the largest; the test set stays whole.

        Args:
            imbalance_ratio: rho = n_max / n_min; 1 is the largest balanced part.
            max_count: n_max; by default the largest for which every class has enough images.

        Raises:
            ValueError: where a class has too few images.
        """
        available = count_classes(self.train_labels)
        if max_count is None:
            counts = largest_exponential_counts(available, imbalance_ratio)
        else:
            counts = exponential_counts(len(available), max_count, imbalance_ratio)
        if (counts > available).any():
            short = int(np.argmax(counts > available))
            raise ValueError(
                f"class {short} needs {counts[short]} images for rho {imbalance_ratio} with {max_count} in the largest "
                f"class, the data hold {available[short]}: set a smaller max_count"
            )
        keep = self.train_rank < counts[self.train_labels]
        return dataclasses.replace(
            self, train=self.train[keep], train_labels=self.train_labels[keep], train_rank=self.train_rank[keep]
        )

    def drawn(self, draw: int) -> Images:
        """The same images in another drawn order inside each class; 0 is the order that they have."""
        return dataclasses.replace(self, train_rank=class_ranks(self.train_labels, draw)) if draw else self

    def shrunk(self, factor: int) -> Images:
        """Images whose pixels are averages of blocks of ``factor`` x ``factor`` pixels; 1 leaves them as they are."""
        if factor == 1:
            return self

        def shrink(images: np.ndarray) -> np.ndarray:
            n, height, width, channels = images.shape
            blocks = images.reshape(n, height // factor, factor, width // factor, factor, channels)
            return blocks.mean((2, 4)).round().astype(np.uint8)

        return dataclasses.replace(self, train=shrink(self.train), test=shrink(self.test))

    @property
    def sha256(self) -> str:
        """Of the training images and labels: rows of one draw can be told from rows of another."""
        digest = hashlib.sha256(np.ascontiguousarray(self.train).tobytes())
        digest.update(self.train_labels.astype(np.int64).tobytes())
        return digest.hexdigest()


def load_images(dataset: str, path: str | Path, seed: int = 0) -> Images:
    """CIFAR-10 or CIFAR-100 for long-tailed subsets.

    Args:
        dataset: "cifar10_lt" or "cifar100_lt".
        path: an ``.npz`` of tiles, or a folder that holds ``<dataset>.npz`` or torchvision's ``cifar-10-batches-py`` /
            ``cifar-100-python``.
        seed: of the order inside a class, for torchvision's layout; an ``.npz`` brings its own.

    Raises:
        ValueError: where no such file is found.
    """
    found = find_images(dataset, path)
    if found.suffix == ".npz":
        return _from_npz(found, NUM_CLASSES[dataset])
    return _from_torchvision(dataset, found.parent, seed)


def find_images(dataset: str, path: str | Path) -> Path:
    """The ``.npz`` or torchvision's folder that :func:`load_images` reads.

    Raises:
        ValueError: where there is neither.
    """
    path = Path(path)
    npz = path if path.suffix == ".npz" else path / f"{dataset}.npz"
    if npz.is_file():
        return npz
    if (path / FOLDERS[dataset]).is_dir():
        return path / FOLDERS[dataset]
    raise ValueError(
        f"no images of {dataset} in {path}: give a folder that holds {dataset}.npz or torchvision's "
        f"{FOLDERS[dataset]}, or the path of the .npz"
    )


def _from_npz(path: Path, num_classes: int) -> Images:
    """Lossless WebP sheets of 32 x 32 tiles, 16 a row (``<split>_webp``, ``_off``, ``_label``; ``train_rank``)."""
    with np.load(path) as stored:
        content = {name: stored[name] for name in stored.files}
    if content["train_label"].max() != num_classes - 1:
        raise ValueError(f"{path} holds {content['train_label'].max() + 1} classes, expected {num_classes}")

    def images(split: str) -> np.ndarray:
        webp, offsets = content[f"{split}_webp"], content[f"{split}_off"]
        tiles = []
        for low, high in itertools.pairwise(offsets):
            sheet = np.asarray(Image.open(io.BytesIO(webp[low:high].tobytes())).convert("RGB"))
            tiles.append(sheet.reshape(-1, 32, 16, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3))
        return np.concatenate(tiles)[: len(content[f"{split}_label"])]

    return Images(
        images("train"),
        content["train_label"].astype(np.int64),
        content["train_rank"].astype(np.int64),
        images("test"),
        content["test_label"].astype(np.int64),
        source="npz",
    )


def _from_torchvision(dataset: str, root: Path, seed: int) -> Images:
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = CIFAR10 if dataset == "cifar10_lt" else CIFAR100
    try:
        train, test = kind(root, train=True), kind(root, train=False)
    except RuntimeError as error:  # torchvision's word for a damaged file
        raise ValueError(f"cannot read {dataset} in {root}: {error}") from error
    labels = np.asarray(train.targets, dtype=np.int64)
    return Images(
        train.data,
        labels,
        class_ranks(labels, seed),
        test.data,
        np.asarray(test.targets, dtype=np.int64),
        source=f"torchvision, order {seed}",
    )


def class_ranks(labels: np.ndarray, seed: int) -> np.ndarray:
    """(N,) rank of each image in a drawn order of its class, the order of :func:`mbj_plugin.exponential_subset`."""
    ranks = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        ranks[np.random.default_rng((seed, int(label))).permutation(of_class)] = np.arange(len(of_class))
    return ranks
