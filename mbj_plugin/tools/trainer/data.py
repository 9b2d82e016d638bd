"""Data sets by timm's names, scikit-learn's digits beside them, and long-tailed subsets of balanced ones."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import ImageDataset, create_dataset
from timm.data.readers.img_extensions import add_img_extensions, get_img_extensions
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch.utils.data import Dataset, IterableDataset
from torchvision import transforms

from mbj_plugin.longtail import exponential_subset, images_of_classes
from mbj_plugin.timm.counts import dataset_labels
from mbj_plugin.tools.trainer.images import ReadableImages

_logger = logging.getLogger("mbj_plugin")
#: Endings of images that Pillow reads, beside timm's .png, .jpg and .jpeg.
ENDINGS = (".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jfif", ".jp2")
DIGITS = "sklearn/digits"
EVALUATION_SPLITS = ("val", "valid", "validation", "eval", "evaluation")
#: ``--sampler`` to the power of a class's images that its share of the draws grows with.
SAMPLERS = {"class-balanced": 0.0, "square-root": 0.5}
DIGITS_PARTS = {"train": (0.0, 0.6), "validation": (0.6, 0.8), "test": (0.8, 1.0)}


class Digits(Dataset):
    """scikit-learn's bundled handwritten digits: 1,797 real 8 x 8 images, split 60 / 20 / 20 % inside each class.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998. The 43 writers are mixed.
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
        self.classes = [f"digit {c}" for c in range(10)]
        self.input_img_mode = input_img_mode
        self.transform: Callable[[Any], Any] | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = Image.fromarray(self.images[index]).convert(self.input_img_mode)
        return (self.transform(image) if self.transform else image), self.targets[index]


class Part(Dataset):
    """Some images of a labelled map-style data set, in this order. The whole set's ``transform`` is this one's too,
    which timm's loaders set."""

    def __init__(self, dataset: Any, indices: np.ndarray) -> None:
        self.dataset, self.indices = dataset, indices
        self.targets = dataset_labels(dataset)[indices]

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


class LongTailSubset(Part):
    """Exponentially long-tailed subset, class 0 the largest: ``imbalance_ratio`` is rho = n_max / n_min, >= 1."""

    def __init__(self, dataset: Any, imbalance_ratio: float, seed: int = 0) -> None:
        self.imbalance_ratio, self.seed = imbalance_ratio, seed
        super().__init__(dataset, exponential_subset(dataset_labels(dataset), imbalance_ratio, seed))

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


def split_indices(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices to train on and to hold out: of each class ``fraction`` of its images, rounded, but never all of them."""
    rng, held_out = np.random.default_rng(seed), []
    for images in images_of_classes(labels, int(labels.max()) + 1):
        number = min(max(round(fraction * len(images)), 1), len(images) - 1)
        held_out.append(rng.permutation(images)[: max(number, 0)])
    out = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(labels)), out), out


def make_dataset(args: Namespace, split: str, is_training: bool, input_img_mode: str) -> Any:
    """The data set that timm's ``--dataset``, ``--data-dir`` and a split name."""
    if args.dataset == DIGITS:
        dataset: Any = Digits(split, input_img_mode)
    else:
        dataset = _timm_dataset(args, split, is_training, input_img_mode)
    for flag, value in (("--imbalance-ratio", args.imbalance_ratio), ("--val-fraction", args.val_fraction)):
        if is_training and value is not None and isinstance(dataset, IterableDataset):
            raise ValueError(f"{flag} needs a data set with indices, {args.dataset!r} only streams")
    return dataset


def _timm_dataset(args: Namespace, split: str, is_training: bool, input_img_mode: str) -> Any:
    prefix = args.dataset.partition("/")[0].lower() if "/" in args.dataset else args.dataset
    if prefix not in ("", "torch", "hfds", "hfids", "tfds", "wds"):
        raise ValueError(
            f"unknown data set {args.dataset!r}: write torch/cifar10, hfds/NAME, tfds/NAME, wds/NAME, {DIGITS}, "
            "or leave --dataset out for a folder of images"
        )
    root = args.data_dir
    if prefix in ("", "torch") and not root:
        raise ValueError(
            "which images? give --data-dir FOLDER: with a sub-folder per split and in it one per class, or where "
            "torchvision finds its data set or, with --dataset-download, writes it"
        )
    if prefix == "" and args.dataset_download:
        raise ValueError("--dataset-download fetches data sets that have a name: give --dataset, or leave it out")
    if prefix in ("", "torch") and not args.dataset_download and not Path(root).exists():
        raise ValueError(f"the data folder {root} does not exist: give an existing one by --data-dir")
    if prefix == "":
        root = _split_folder(Path(root), split)
        add_img_extensions(ENDINGS)
    try:
        dataset = create_dataset(
            args.dataset,
            root=root,
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
    except (RuntimeError, AssertionError, OSError, ImportError, TypeError) as error:
        raise ValueError(
            f"cannot read the {split} split of {args.dataset or 'the image folder'} in {args.data_dir}: {error}"
        ) from error
    if type(dataset) is not ImageDataset:
        return dataset
    if isinstance(dataset.reader, ReaderImageFolder):
        # A held-out part is read from the training folder, of which this is said once.
        said = getattr(args, "rank", 0) == 0 and (is_training or args.val_fraction is None)
        for line in _leave_out(dataset.reader, bool(args.class_map)):
            _logger.log(logging.WARNING if said else logging.DEBUG, line)
    return ReadableImages(dataset.reader, input_img_mode, is_training)


def _leave_out(reader: Any, mapped: bool) -> list[str]:
    """Take what is hidden from a folder's images and classes; a line on it, and one on files that are not read.

    ``reader`` is timm's; where a class map numbers its classes (``mapped``), the numbers stay.
    """
    root, lines = str(reader.root), []

    def hidden(path: str) -> bool:
        return any(part.startswith(".") for part in os.path.relpath(path, root).split(os.sep) if part != ".")

    left = [(path, c) for path, c in reader.samples if not hidden(path)]
    if len(left) < len(reader.samples):
        example = next(path for path, _ in reader.samples if hidden(path))
        lines.append(f"Hidden images in {root} are left out: {len(reader.samples) - len(left)}, such as {example}.")
        if not left:
            raise ValueError(f"{root} has no images but hidden ones, such as {example}: rename them")
        reader.samples = left
        if not mapped:
            found = {c for _, c in left}
            names = [name for name, c in reader.class_to_idx.items() if c in found]
            number = {reader.class_to_idx[name]: new for new, name in enumerate(names)}
            reader.class_to_idx = {name: new for new, name in enumerate(names)}
            reader.samples = [(path, number[c]) for path, c in left]
    endings: Counter[str] = Counter()
    empty = []
    read = get_img_extensions(as_set=True)
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        seen = [os.path.splitext(name)[1].lower() for name in files if not name.startswith(".")]
        endings.update(ending for ending in seen if ending not in read)
        if seen and folder != root and not read & set(seen):
            empty.append(os.path.relpath(folder, root))
    if endings:
        kinds = ", ".join(f"{number} {ending or 'without ending'}" for ending, number in endings.most_common(5))
        none = f" No file is read in {', '.join(empty[:5])}: no class is made of it." if empty else ""
        lines.append(
            f"Files in {root} are left out, by their ending no images: {endings.total()} ({kinds}); read are "
            f"{', '.join(get_img_extensions())}.{none}"
        )
    return lines


def _split_folder(root: Path, split: str) -> str:
    """The folder, or the tar file, of a split below ``root``. timm would take the whole of ``root`` without a word."""
    synonyms = [names for names in (("train", "training"), EVALUATION_SPLITS) if split in names]
    for name in (split, *(synonyms[0] if synonyms else ())):
        for path in (root / name, root / f"{name}.tar"):
            if path.exists():
                return str(path)
    if not root.is_dir():
        raise ValueError(f"{root} is a file: give the folder that holds a folder for each split")
    found = sorted(path.name for path in root.iterdir())
    raise ValueError(
        f"{root} has no folder (or tar file) {split!r}, it holds {', '.join(found[:8]) or 'nothing'}: name the splits "
        "by --train-split and --val-split"
    )


def check_same_classes(train_set: Any, evaluation_set: Any) -> None:
    """Raise ValueError where two folders number their classes differently: one has a class without images."""
    train_map, evaluation_map = (_class_to_idx(dataset) for dataset in (train_set, evaluation_set))
    if train_map is None or evaluation_map is None or train_map == evaluation_map:
        return
    names = sorted(train_map.keys() ^ evaluation_map.keys()) or sorted(train_map)
    name = next(name for name in names if train_map.get(name) != evaluation_map.get(name))
    here, there = (f"the number {each[name]}" if name in each else "no images" for each in (train_map, evaluation_map))
    raise ValueError(
        f"class {name!r} has {here} in training and {there} in evaluation: give both splits the same classes, or the "
        "same --class-map"
    )


def innermost(dataset: Any) -> Any:
    """The data set of which this one is a part."""
    while isinstance(dataset, Part):
        dataset = dataset.dataset
    return dataset


def _class_to_idx(dataset: Any) -> dict[str, int] | None:
    dataset = innermost(dataset)
    for holder in (dataset, getattr(dataset, "reader", None)):
        for name in ("class_to_idx", "class_name_to_idx"):
            if (mapping := getattr(holder, name, None)) is not None:
                return mapping
    return None


def pad_crop(
    transform: transforms.Compose, size: tuple[int, int], padding: int, policy: bool = False
) -> transforms.Compose:
    """timm's training transform with the CIFAR recipe's crop for its own: pad with black, crop a random patch (He et
    al., 2016, Section 4.2). Images of another size are resized to it first. All that follows the crop is kept.

    ``policy`` adds AutoAugment's policy for CIFAR-10 and a Cutout of half the side, after the flips.
    """
    crop, *rest = transform.transforms
    assert isinstance(crop, RandomResizedCropAndInterpolation), f"timm's first transform is {type(crop).__name__}"
    if policy:
        flips = [t for t in rest if isinstance(t, transforms.RandomHorizontalFlip | transforms.RandomVerticalFlip)]
        cifar = transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10, fill=[128, 128, 128])
        rest = [*flips, cifar, cutout, *(t for t in rest if t not in flips)]
    return transforms.Compose([transforms.Resize(size), transforms.RandomCrop(size, padding=padding), *rest])


def cutout(image: Image.Image) -> Image.Image:
    """A black square of half the side about a random pixel, cut by the border (https://arxiv.org/abs/1708.04552)."""
    pixels = np.array(image)
    (y, x), (dy, dx) = (int(torch.randint(n, ())) for n in pixels.shape[:2]), (n // 4 for n in pixels.shape[:2])
    pixels[max(y - dy, 0) : y + dy, max(x - dx, 0) : x + dx] = 0
    return Image.fromarray(pixels)
