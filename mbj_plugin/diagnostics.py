"""What the memory holds, as scalars: how full it is, whose rows are in it, how old they are, how far they jitter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from mbj_plugin.longtail import GROUPS, class_groups
from mbj_plugin.memory import MemoryBank


@torch.no_grad()
def memory_report(bank: MemoryBank, class_counts: ArrayLike) -> dict[str, float]:
    """Scalars of one bank; NaN where there is nothing to measure, so that the keys are always the same.

    Reads the bank to the CPU, and so waits for the device: call it once an epoch, not once a step.

    Args:
        bank: the memory.
        class_counts: (C,) training images per class, which decide on the groups.

    Returns:
        "fill" (share of slots), "coverage" (share of classes with a row), and for each of head, medium and tail
        "entries_*" (rows), "age_*" (mean age of its rows in calls of ``enqueue``) and "jitter_*" (mean over its classes
        with two rows or more of their angular variance, rad^2).
    """
    groups = class_groups(class_counts)
    labels = bank.labels.cpu()
    filled, num_classes = labels >= 0, len(np.asarray(class_counts))
    labels = labels[filled]
    jitter = angular_variance(bank.rows.cpu()[filled], labels, num_classes)
    entries = np.bincount(labels, minlength=num_classes)
    age = np.bincount(labels, bank.ages.cpu()[filled], minlength=num_classes)
    scalars = {"fill": len(labels) / bank.size, "coverage": float((entries > 0).mean())}
    for name in GROUPS:
        classes = groups[name]
        count = int(entries[classes].sum())
        scalars[f"entries_{name}"] = float(count)
        scalars[f"age_{name}"] = float(age[classes].sum()) / count if count else math.nan
        scalars[f"jitter_{name}"] = jitter[classes].nanmean().item()
    return scalars


def memories_report(heads: Sequence[Any], class_counts: ArrayLike) -> dict[str, float]:
    """``mbj/KIND/NAME`` of every memory by :func:`memory_report`; of several heads the mean over those that know it.

    Args:
        heads: for each head of the model, kind ("feature", "prototype") to memory loss.
        class_counts: (C,) training images per class.
    """
    scalars = {}
    for kind in heads[0] if heads else ():
        reports = [memory_report(head[kind].bank, class_counts) for head in heads]
        for name in reports[0]:
            scalars[f"mbj/{kind}/{name}"] = torch.tensor([report[name] for report in reports]).nanmean().item()
    return scalars


def angular_variance(rows: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Jitter of each class: the mean squared angle of its rows to their mean direction (paper, Section 3.1).

    The paper names "the geometrical angular variance" and gives no formula; this one is ours.

    Args:
        rows: (M, D), of any length.
        labels: (M,) in [0, C).
        num_classes: C.

    Returns:
        (C,) in rad^2; NaN for a class with fewer than two rows.
    """
    unit = F.normalize(rows.double(), dim=1)
    mean = unit.new_zeros(num_classes, unit.shape[1]).index_add_(0, labels, unit)
    mean = F.normalize(mean, dim=1)[labels]
    # atan2 keeps the small angles that arccos of a cosine near 1 would lose.
    angle = torch.atan2((unit - mean).norm(dim=1), (unit + mean).norm(dim=1)) * 2
    total = unit.new_zeros(num_classes).index_add_(0, labels, angle.square())
    count = torch.bincount(labels, minlength=num_classes)
    return torch.where(count > 1, total / count, torch.nan)
