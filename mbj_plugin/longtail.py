"""Long-tailed data sets as indices and counts only: how many images of each class, which ones, which class is tail."""

from __future__ import annotations

import bisect
import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

GROUPS = ("head", "medium", "tail")
SHOTS = ("many_shot", "medium_shot", "few_shot")


def count_classes(labels: ArrayLike, num_classes: int | None = None) -> np.ndarray:
    """(C,) int64 number of images of each class. Negative labels are unlabelled and do not count.

    Args:
        labels: one integer class per image, < num_classes.
        num_classes: C; the largest label + 1 by default.

    Raises:
        ValueError: for a label of num_classes or above.

    Example:
        >>> count_classes([0, 0, 2, -1])
        array([2, 0, 1])
    """
    labels = np.asarray(labels, dtype=np.int64)
    labels = labels[labels >= 0]
    if num_classes is not None and labels.size and labels.max() >= num_classes:
        raise ValueError(f"label {labels.max()} is out of range: the labels must be 0 to {num_classes - 1}")
    return np.bincount(labels, minlength=num_classes or 0)


def exponential_counts(num_classes: int, max_count: int, imbalance_ratio: float) -> np.ndarray:
    """Images per class of an exponentially long-tailed set, n_c = int(n_max * (1/rho)^(c / (C - 1))).

    The profile of the long-tailed CIFAR sets (Cao et al., 2019, https://arxiv.org/abs/1906.07413), class 0 the largest.

    Args:
        num_classes: C >= 1.
        max_count: n_max, images of the largest class, >= 1.
        imbalance_ratio: rho = n_max / n_min, >= 1.

    Returns:
        (C,) int64 counts, not increasing, each at least 1.

    Raises:
        ValueError: for a value out of range, or where the smallest class would be left without an image.

    Example:
        >>> exponential_counts(10, 5000, 100)
        array([5000, 2997, 1796, 1077,  645,  387,  232,  139,   83,   50])
    """
    if num_classes < 1 or max_count < 1:
        raise ValueError(f"num_classes and max_count must be >= 1, got {num_classes} and {max_count}")
    if not 1 <= imbalance_ratio < float("inf"):
        raise ValueError(f"the imbalance ratio is n_max / n_min and must be a number >= 1, got {imbalance_ratio}")
    exponents = [c / max(num_classes - 1, 1) for c in range(num_classes)]
    # 49 * (1 / 49) is a little less than 1 in floating point, and means 1.
    counts = np.array([int(max_count * (1.0 / imbalance_ratio) ** e + 1e-9) for e in exponents], dtype=np.int64)
    if counts.min() < 1:
        raise ValueError(
            f"imbalance ratio {imbalance_ratio} leaves the smallest class without an image: "
            f"with {max_count} images in the largest class it can be at most {max_count}"
        )
    return counts


def largest_exponential_counts(available: ArrayLike, imbalance_ratio: float) -> np.ndarray:
    """The largest :func:`exponential_counts` for which every class has enough images.

    Args:
        available: (C,) images of each class, each >= 1.
        imbalance_ratio: rho = n_max / n_min, >= 1.

    Returns:
        (C,) int64 counts.

    Raises:
        ValueError: for a ratio below 1, or one that would leave a class without an image.

    Example:
        >>> largest_exponential_counts([100, 100, 8], 10)
        array([89, 28,  8])
    """
    available = np.asarray(available, dtype=np.int64)

    def counts(largest: int) -> np.ndarray:
        return exponential_counts(len(available), largest, imbalance_ratio)

    most = int(available.max())
    counts(most)  # refuses a ratio that leaves a class without an image
    # From the least n_max that leaves the smallest class an image; counts grow with it.
    choices = range(min(math.ceil(imbalance_ratio * (1 - 1e-9)), most), most + 1)
    fitting = bisect.bisect(choices, 0, key=lambda largest: int((counts(largest) > available).sum()))
    if not fitting:
        scarce = int((available / counts(choices[0])).argmin())
        raise ValueError(
            f"imbalance ratio {imbalance_ratio} leaves the smallest class without an image: class 0 is the largest "
            f"of the profile, and class {scarce} has only {available[scarce]} images"
        )
    return counts(choices[fitting - 1])


def images_of_classes(labels: ArrayLike, num_classes: int) -> list[np.ndarray]:
    """For each of C classes the indices of its images, in order. One sort, where a search for each class is C.

    Args:
        labels: one integer class per image; negative ones are left out.
        num_classes: C, above every label.

    Example:
        >>> images_of_classes([1, 0, 1, -1], 2)
        [array([1]), array([0, 2])]
    """
    labels = np.asarray(labels, dtype=np.int64)
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.searchsorted(labels[order], np.arange(num_classes + 1)))[1:-1]


def exponential_subset(labels: ArrayLike, imbalance_ratio: float, seed: int = 0) -> np.ndarray:
    """Indices of an exponentially long-tailed subset of a labelled set, class 0 the largest.

    The profile is the largest one for which every class has enough images; inside a class the images are drawn
    without replacement, and the draw of one class does not depend on the others. Of a balanced set, the subset of a
    higher ratio lies inside that of a lower one.

    Args:
        labels: one integer class per image.
        imbalance_ratio: rho = n_max / n_min, >= 1.
        seed: of the draw.

    Returns:
        Sorted int64 indices into ``labels``.

    Raises:
        ValueError: for a ratio below 1, a class without an image, or a ratio that would leave one without.

    Example:
        >>> exponential_subset([0, 0, 0, 0, 1, 1, 1, 1], 4)
        array([0, 1, 2, 3, 7])
    """
    labels = np.asarray(labels, dtype=np.int64)
    available = count_classes(labels)
    if not available.size:
        raise ValueError("there is no labelled image to choose from")
    if available.min() < 1:
        raise ValueError(f"class {int(available.argmin())} has no images: every class from 0 to the largest needs some")
    counts = largest_exponential_counts(available, imbalance_ratio)
    chosen = []
    for label, (count, of_class) in enumerate(zip(counts, images_of_classes(labels, len(counts)), strict=True)):
        chosen.append(np.random.default_rng((seed, label)).permutation(of_class)[:count])
    return np.sort(np.concatenate(chosen))


def head_tail_subset(identities: Sequence[Hashable], num_head: int, tail_size: int, seed: int = 0) -> np.ndarray:
    """Indices of an <H, S> long-tailed re-ID set: the ``num_head`` most frequent identities whole, the others cut.

    Paper, Section 4.1: "We mark the top H most frequent identities as head classes. The rest are treated as tail
    classes and the number of samples is reduced to 5". Identities of one size are ranked by name. The draw of one
    identity depends on the seed and on its name alone.

    Args:
        identities: one identity per image, int or str; the images in an order that is the same everywhere.
        num_head: H >= 0, identities that keep all their images.
        tail_size: S >= 1, images that each other identity keeps (all, where it has fewer).
        seed: of the draw.

    Returns:
        Sorted int64 indices into ``identities``.

    Raises:
        ValueError: for num_head < 0, num_head above the number of identities, or tail_size < 1.

    Example:
        >>> head_tail_subset(["a"] * 4 + ["b"] * 3 + ["c"] * 2, num_head=1, tail_size=1)
        array([0, 1, 2, 3, 5, 8])
    """
    names = np.asarray([str(identity) for identity in identities])
    unique, inverse, counts = np.unique(names, return_inverse=True, return_counts=True)
    if not 0 <= num_head <= len(unique):
        raise ValueError(f"num_head must be between 0 and the {len(unique)} identities of the set, got {num_head}")
    if tail_size < 1:
        raise ValueError(f"tail_size must be >= 1, got {tail_size}")
    by_rank, of_identity = np.lexsort((unique, -counts)), images_of_classes(inverse, len(unique))
    chosen = []
    for rank, position in enumerate(by_rank):
        images = of_identity[position]
        if rank >= num_head:
            key = (seed, *unique[position].encode())
            images = np.random.default_rng(key).permutation(images)[:tail_size]
        chosen.append(images)
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, dtype=np.int64)


def class_groups(class_counts: ArrayLike) -> dict[str, np.ndarray]:
    """Classes of each group that long-tailed results are reported by.

    ``head`` / ``medium`` / ``tail`` are the first 20 %, the next 20 % and the last 60 % of the classes by rank, the
    split that explains the paper's Tables 4 and 5; the head has
    one class at least. ``many_shot`` / ``medium_shot`` / ``few_shot`` are the field's
    > 100, 20 to 100 and < 20 images (Liu et al., 2019, https://arxiv.org/abs/1904.05160). Classes of one size are
    ranked by index.

    Args:
        class_counts: (C,) training images per class.

    Returns:
        Group name to sorted int64 class indices; a group can be empty.

    Example:
        >>> {name: classes.tolist() for name, classes in class_groups([500, 90, 40, 12, 5]).items()}
        {'head': [0], 'medium': [1], 'tail': [2, 3, 4], 'many_shot': [0], 'medium_shot': [1, 2], 'few_shot': [3, 4]}
    """
    counts = np.asarray(class_counts)
    if counts.ndim != 1 or counts.size == 0:
        raise ValueError(f"class_counts must be a list of C counts, got shape {counts.shape}")
    by_rank = np.argsort(-counts, kind="stable")
    first = max(1, round(0.2 * len(counts)))  # of two classes the frequent one is the head
    second = max(first, round(0.4 * len(counts)))
    groups = {"head": by_rank[:first], "medium": by_rank[first:second], "tail": by_rank[second:]}
    groups |= {
        "many_shot": np.flatnonzero(counts > 100),
        "medium_shot": np.flatnonzero((counts >= 20) & (counts <= 100)),
        "few_shot": np.flatnonzero(counts < 20),
    }
    return {name: np.sort(classes) for name, classes in groups.items()}
