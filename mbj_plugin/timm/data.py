"""Data sets by timm's names, scikit-learn's digits beside them, and long-tailed subsets of balanced ones."""

from __future__ import annotations

import hashlib
import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.data import create_dataset
from torch.utils.data import Dataset, IterableDataset
from torchvision import transforms

from mbj_plugin.longtail import exponential_subset
from mbj_plugin.timm.counts import dataset_labels

DIGITS = "sklearn/digits"
DIGITS_PARTS = {"train": (0.0, 0.6), "validation": (0.6, 0.8), "test": (0.8, 1.0)}


class Digits(Dataset):
    """scikit-learn's bundled handwritten digits: 1,797 real 8 x 8 images, split 60 / 20 / 20 % inside each class.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998. The 43 writers are mixed.

    Args:
        split: "train", "validation" or "test".

    Raises:
        ValueError: for another split.
    """

    def __init__(self, split: str, input_img_mode: str = "L") -> None:
        from sklearn.datasets import load_digits

        if split not in DIGITS_PARTS:
            raise ValueError(f"{DIGITS} has the splits {list(DIGITS_PARTS)}, got {split!r}")
        images, labels = load_digits(return_X_y=True)
        rng, (low, high) = np.random.default_rng(0), DIGITS_PARTS[split]
        chosen = []
        for label in range(10):
            of_class = rng.permutation(np.flatnonzero(labels == label))
            chosen.append(of_class[round(low * len(of_class)) : round(high * len(of_class))])
        order = np.sort(np.concatenate(chosen))
        self.images = (images[order].reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
        self.targets = labels[order].tolist()
        self.input_img_mode = input_img_mode
        self.transform: Callable[[Any], Any] | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = Image.fromarray(self.images[index]).convert(self.input_img_mode)
        return (self.transform(image) if self.transform else image), self.targets[index]


class LongTailSubset(Dataset):
    """Exponentially long-tailed subset of a labelled map-style data set, class 0 the largest.

    Args:
        dataset: the whole set; its ``transform`` is this one's.
        imbalance_ratio: rho = n_max / n_min, >= 1.
        seed: of the draw.

    Raises:
        ValueError: for a ratio below 1, and where the labels cannot be read without decoding images.
    """

    def __init__(self, dataset: Any, imbalance_ratio: float, seed: int = 0) -> None:
        labels = dataset_labels(dataset)
        self.dataset, self.imbalance_ratio, self.seed = dataset, imbalance_ratio, seed
        self.indices = exponential_subset(labels, imbalance_ratio, seed)
        self.targets = labels[self.indices]

    @property
    def transform(self) -> Any:
        return self.dataset.transform

    @transform.setter
    def transform(self, value: Any) -> None:
        self.dataset.transform = value

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[int(self.indices[index])]

    def manifest(self) -> dict[str, Any]:
        """Which images these are: settings, counts, indices into the whole set, and their SHA-256."""
        indices = self.indices.tolist()
        return {
            "imbalance_ratio": self.imbalance_ratio,
            "seed": self.seed,
            "class_counts": np.bincount(self.targets).tolist(),
            "sha256": hashlib.sha256(json.dumps(indices).encode()).hexdigest(),
            "indices": indices,
        }


def make_dataset(args: Namespace, split: str, is_training: bool, input_img_mode: str) -> Any:
    """The data set that timm's ``--dataset``, ``--data-dir`` and a split name; ``--imbalance-ratio`` cuts training.

    Raises:
        ValueError: for a missing or empty folder, an unknown name, or a set that cannot be cut.
    """
    if args.dataset == DIGITS:
        dataset: Any = Digits(split, input_img_mode)
    else:
        dataset = _timm_dataset(args, split, is_training, input_img_mode)
    if is_training and args.imbalance_ratio is not None:
        if isinstance(dataset, IterableDataset):
            raise ValueError(f"--imbalance-ratio needs a data set with indices, {args.dataset!r} only streams")
        dataset = LongTailSubset(dataset, args.imbalance_ratio, args.subset_seed)
    return dataset


def _timm_dataset(args: Namespace, split: str, is_training: bool, input_img_mode: str) -> Any:
    on_disk = args.dataset == "" or args.dataset.startswith(("torch/", "folder/", "image_folder/"))
    if on_disk and not args.dataset_download:
        if not args.data_dir:
            raise ValueError("which images? give --data-dir FOLDER with one sub-folder per class and split")
        if not Path(args.data_dir).is_dir():
            raise ValueError(f"the data folder {args.data_dir} does not exist: give an existing one by --data-dir")
    try:
        return create_dataset(
            args.dataset,
            root=args.data_dir,
            split=split,
            is_training=is_training,
            class_map=args.class_map,
            download=args.dataset_download,
            batch_size=args.batch_size,
            seed=args.seed,
            repeats=args.epoch_repeats,
            input_img_mode=input_img_mode,
            input_key=args.input_key,
            target_key=args.target_key,
        )
    except (RuntimeError, FileNotFoundError, AssertionError, OSError) as error:
        raise ValueError(
            f"cannot read the {split} split of {args.dataset or 'the image folder'} in {args.data_dir}: {error}"
        ) from error


def pad_crop(size: int, padding: int, hflip: float, mean: Any, std: Any, prefetch: bool) -> Callable[[Any], Any]:
    """Training transform of the CIFAR recipe: pad, crop a random patch, flip (He et al., 2016, Section 4.2).

    Args:
        size: of the patch, in pixels.
        padding: black pixels on each side.
        hflip: probability of a horizontal flip.
        mean: per channel, of the normalised image.
        std: per channel.
        prefetch: leave the normalisation to timm's PrefetchLoader, and give uint8.
    """
    steps: list[Any] = [transforms.RandomCrop(size, padding=padding)]
    if hflip > 0:
        steps.append(transforms.RandomHorizontalFlip(hflip))
    steps.append(transforms.PILToTensor())
    if not prefetch:
        steps += [transforms.Lambda(lambda x: x.float().div(255)), transforms.Normalize(mean, std)]
    return transforms.Compose(steps)
