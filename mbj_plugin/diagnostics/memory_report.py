"""What the memory holds, as scalars: how full it is, whose rows are in it, how old they are, how far they jitter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from mbj_plugin.diagnostics.groups import GROUPS
from mbj_plugin.diagnostics.jitter import class_angular_variance
from mbj_plugin.longtail import class_groups
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
    jitter = class_angular_variance(bank.rows.cpu()[filled], labels, num_classes)
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


def memories_report(heads: Sequence[Mapping[str, nn.Module]], class_counts: ArrayLike) -> dict[str, float]:
    """``mbj/KIND/NAME`` of every memory by :func:`memory_report`; of several heads the mean over those that know it.

    Args:
        heads: for each head of the model, kind ("feature", "prototype") to memory loss.
        class_counts: (C,) training images per class.
    """
    scalars = {}
    for kind in heads[0] if heads else ():
        reports = [memory_report(head[kind].bank, class_counts) for head in heads]  # type: ignore[arg-type]
        for name in reports[0]:
            scalars[f"mbj/{kind}/{name}"] = torch.tensor([report[name] for report in reports]).nanmean().item()
    return scalars
