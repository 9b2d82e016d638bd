"""The amplitude of jitter: angular variance between historical features (paper, Section 3.1, Fig. 2).

The paper says "the geometrical angular variance between historical features of one instance" and gives no formula. Ours
is the mean squared angle, in rad^2, between each feature and the direction of their mean.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def angular_variance(vectors: Tensor) -> Tensor:
    """Mean squared angle to the mean direction.

    Args:
        vectors: (..., T, D), T historical features of each instance; their lengths do not matter.

    Returns:
        (...) in rad^2; 0 where all point the same way.
    """
    instances, times = vectors.shape[:-2], vectors.shape[-2]
    owner = torch.arange(instances.numel(), device=vectors.device).repeat_interleave(times)
    return class_angular_variance(vectors.flatten(0, -2), owner, instances.numel(), least=1).reshape(instances)


def class_angular_variance(rows: Tensor, labels: Tensor, num_classes: int, least: int = 2) -> Tensor:
    """Angular variance of the rows of each class.

    Args:
        rows: (M, D), of any length.
        labels: (M,) in [-1, num_classes); rows of a negative label count nowhere.
        num_classes: C.
        least: rows that a class needs.

    Returns:
        (C,) in rad^2; NaN for a class with fewer than ``least`` rows.
    """
    # Empty slots go to a class of their own behind the last.
    owner = torch.where(labels < 0, num_classes, labels)
    unit = F.normalize(rows.double(), dim=1)
    mean = unit.new_zeros(num_classes + 1, unit.shape[1]).index_add_(0, owner, unit)
    mean = F.normalize(mean, dim=1)[owner]
    # atan2 keeps the small angles that arccos of a cosine near 1 would lose.
    angle = torch.atan2((unit - mean).norm(dim=1), (unit + mean).norm(dim=1)) * 2
    total = unit.new_zeros(num_classes + 1).index_add_(0, owner, angle.square())
    count = torch.bincount(owner, minlength=num_classes + 1)
    return torch.where(count >= least, total / count, torch.nan)[:num_classes]
