"""The labels of a data set without decoding an image, and from them the images per class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, IterableDataset, Subset

from mbj_plugin.checks import MOST_IMAGES, Range
from mbj_plugin.longtail import count_classes

HOW_TO_GIVE_COUNTS = (
    "give the images per class as a JSON list, in the order of the class indices: "
    "--mbj-class-counts counts.json (mbj train) or MBJ='class_counts=counts.json' (timm's train.py)"
)


def dataset_labels(dataset: Any) -> np.ndarray:
    """(N,) int64 class of each image, in the order of the data set. No image is opened.

    Knows timm's ImageDataset over folders, tar files and Hugging Face data, torchvision's data sets, Subset,
    ConcatDataset, and wrappers that hold theirs as ``.dataset``.

    Raises:
        ValueError: where the labels cannot be read so, with the way to give counts instead.
    """
    if isinstance(dataset, Subset):
        return dataset_labels(dataset.dataset)[np.asarray(dataset.indices, dtype=np.int64)]
    if isinstance(dataset, ConcatDataset):
        return np.concatenate([dataset_labels(part) for part in dataset.datasets])
    if not isinstance(dataset, IterableDataset):
        labels = _own_labels(dataset)
        if labels is None and hasattr(dataset, "dataset"):
            return dataset_labels(dataset.dataset)
        if labels is not None:
            transform = getattr(dataset, "target_transform", None)
            return np.asarray([transform(y) for y in labels] if transform else labels, dtype=np.int64)
    raise ValueError(f"cannot count the classes of {type(dataset).__name__} without reading it: {HOW_TO_GIVE_COUNTS}")


def _own_labels(dataset: Any) -> Any:
    """Labels that the data set, or its timm reader, keeps in memory; None where there are none."""
    for holder in (dataset, getattr(dataset, "reader", None)):
        for name in ("targets", "labels", "_labels"):
            if (labels := getattr(holder, name, None)) is not None:
                return labels
        if (samples := getattr(holder, "samples", None)) is not None:
            return [sample[1] for sample in samples]
        table, key = getattr(holder, "dataset", None), getattr(holder, "label_key", None)
        if table is not None and key is not None:  # timm's reader of Hugging Face data sets
            return table[key]
    return None


def counts_from_file(path: str | Path) -> np.ndarray:
    """(C,) images per class from a JSON file: a list, or timm's class stats (``{"pos_counts": [...]}``).

    Raises:
        ValueError: for a file that is missing, no JSON, or holds something else.
    """
    try:
        content = json.loads(Path(path).read_text())
    except OSError as error:
        raise ValueError(f"cannot read the class counts {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"the class counts {path} are no JSON: {error}") from error
    if isinstance(content, dict):
        content = content.get("pos_counts", content.get("class_counts"))
    if not isinstance(content, list) or any(Range(0, MOST_IMAGES, whole=True).read(n) is None for n in content):
        raise ValueError(f"the class counts {path} must be a JSON list of whole numbers >= 0, one per class")
    return np.asarray(content, dtype=np.int64)


def _check_against(dataset: Any, counts: np.ndarray, path: str | Path) -> None:
    """Raise ValueError where the images can be counted, and are others than the file says."""
    try:
        labels = dataset_labels(dataset)
    except ValueError:
        return  # for such sets the file is there
    given, counted = counts.tolist(), count_classes(labels).tolist()
    if counted + [0] * (len(given) - len(counted)) != given:
        raise ValueError(
            f"the class counts {path} contradict the images, {given[:20]} there and {counted[:20]} in training: leave "
            "out --mbj-class-counts (class_counts of MBJ), these images can be counted"
        )


def training_counts(dataset: Any, num_classes: int, path: str | Path | None = None) -> np.ndarray:
    """(C,) training images per class, each at least 1.

    Args:
        dataset: the training set.
        num_classes: C.
        path: JSON file of counts, for data sets that cannot be counted; of others it must say the same.

    Raises:
        ValueError: for a single class, a class without images, labels out of range, counts that cannot be had, or a
            file that contradicts the images.
    """
    if path:
        counts = counts_from_file(path)
        if len(counts) != num_classes:
            raise ValueError(f"the class counts {path} hold {len(counts)} classes, the model has {num_classes}")
        _check_against(dataset, counts, path)
    else:
        counts = count_classes(dataset_labels(dataset), num_classes)
    if num_classes < 2:
        raise ValueError(f"there is {num_classes} class: a classifier needs two or more")
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        raise ValueError(
            f"{len(empty)} of {num_classes} classes have no training images (the first is class {empty[0]}): "
            "add images, or set --num-classes to the classes there are"
        )
    return counts
