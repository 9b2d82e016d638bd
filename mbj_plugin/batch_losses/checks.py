"""What every loss of this room asks of its input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def checked_counts(class_counts: Tensor | Sequence[int]) -> Tensor:
    """(C,) fp64 training images per class.

    Raises:
        ValueError: for counts that are empty, negative, not finite or all zero.
    """
    counts = torch.as_tensor(class_counts).double().cpu()
    if counts.ndim != 1 or counts.numel() == 0:
        raise ValueError(f"class_counts must be a list of C counts, got shape {tuple(counts.shape)}")
    if not torch.isfinite(counts).all() or (counts < 0).any() or not (counts > 0).any():
        raise ValueError(f"class_counts must be finite, >= 0 and not all zero, got {counts.tolist()}")
    return counts


def check_hard_labels(logits: Tensor, target: Tensor) -> None:
    """Raises:
    ValueError: where the target is not one integer class per row of the logits.
    """
    if logits.ndim != 2 or target.shape != logits.shape[:1] or target.is_floating_point():
        raise ValueError(
            f"this loss takes (B, C) logits and (B,) integer classes, got {tuple(logits.shape)} and "
            f"{tuple(target.shape)} {target.dtype}: turn Mixup, CutMix and label smoothing off, or take loss 'ce'"
        )
