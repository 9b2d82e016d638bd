"""Errors by class and by class group (paper, Tables 4 and 5), and where the wrong answers go."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from mbj_plugin.longtail import class_groups

GROUPS = {
    "head / medium / tail (20 / 20 / 60 % of the classes by rank)": ("head", "medium", "tail"),
    "many / medium / few shot (> 100, 20 to 100, < 20 images)": ("many_shot", "medium_shot", "few_shot"),
}


def group_errors(images: ArrayLike, wrong: ArrayLike, class_counts: ArrayLike) -> dict[str, float]:
    """Error in percent: of all images, and of each group of :func:`mbj_plugin.class_groups`.

    A group's error is the mean over its test images, as in the paper's Tables 4 and 5 (the test sets are balanced).

    Args:
        images: (C,) test images of each class.
        wrong: (C,) of them, those that are classified wrongly.
        class_counts: (C,) training images, which decide on the groups.

    Returns:
        "error", and one key per group that has test images.
    """
    n, bad = np.asarray(images, dtype=float), np.asarray(wrong, dtype=float)
    groups = {"error": np.arange(len(n))} | class_groups(class_counts)
    return {name: 100 * bad[c].sum() / n[c].sum() for name, c in groups.items() if n[c].sum() > 0}


def confusion_matrix(truth: ArrayLike, predicted: ArrayLike, num_classes: int) -> np.ndarray:
    """(C, C) int64 number of images of each true class (row) that got each answer (column).

    Args:
        truth: (N,) true classes, in [0, num_classes).
        predicted: (N,) answers, in [0, num_classes).
        num_classes: C.
    """
    pairs = np.asarray(truth, dtype=np.int64) * num_classes + np.asarray(predicted, dtype=np.int64)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def answers_by_group(truth: ArrayLike, predicted: ArrayLike, class_counts: ArrayLike) -> dict[str, dict[str, float]]:
    """Where the test images of each group end up, in percent of the group's images.

    Args:
        truth: (N,) true classes.
        predicted: (N,) answers.
        class_counts: (C,) training images, which decide on the groups.

    Returns:
        For "head", "medium" and "tail", where they have images: "right", and "head", "medium", "tail" for wrong answers
        that name a class of that group. They sum to 100.
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    groups = class_groups(class_counts)
    group_of = np.empty(len(np.asarray(class_counts)), dtype=object)
    for name in ("head", "medium", "tail"):
        group_of[groups[name]] = name
    answers = {}
    for name in ("head", "medium", "tail"):
        of_group = group_of[truth] == name
        if of_group.any():
            right = predicted[of_group] == truth[of_group]
            wrong = group_of[predicted[of_group][~right]]
            answers[name] = {"right": 100 * right.mean()}
            answers[name] |= {to: 100 * (wrong == to).sum() / of_group.sum() for to in ("head", "medium", "tail")}
    return answers
