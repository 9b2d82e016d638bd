"""What every loss of this room asks of its input."""

from __future__ import annotations

from torch import Tensor


def at_least_0(name: str, value: float) -> float:
    """The value, which the user calls ``name``.

    Raises:
        ValueError: for a value that is below 0 or not finite.
    """
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be a finite number >= 0, got {value}")
    return float(value)


def check_hard_labels(logits: Tensor, target: Tensor) -> None:
    """Raises:
    ValueError: where the target is not one integer class per row of the logits.
    """
    if logits.ndim != 2 or target.shape != logits.shape[:1] or target.is_floating_point():
        raise ValueError(
            f"this loss takes (B, C) logits and (B,) integer classes, got {tuple(logits.shape)} and "
            f"{tuple(target.shape)} {target.dtype}: turn Mixup, CutMix and label smoothing off, or take loss 'ce'"
        )
