"""Draws that are the same on every rank and device: a counter-based generator, and one class of a soft label."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def counter_uniform(seed: Tensor, step: Tensor, count: int, stream: int = 0) -> Tensor:
    """(count,) numbers in [0, 1) that depend on (seed, step, position, stream) alone.

    A counter-based generator (Salmon et al., 2011, https://doi.org/10.1145/2063384.2063405) on SplitMix64's mixer: the
    same numbers on every rank and device, no state beside the step, no host sync.

    Args:
        seed: 0-dim int64 tensor.
        step: 0-dim int64 tensor.
        count: numbers to draw.
        stream: independent draws of one step have different streams.

    Returns:
        (count,) fp32 tensor on the device of ``step``, multiples of 2^-24.

    Example:
        >>> seed, step = torch.tensor(0), torch.tensor(7)
        >>> counter_uniform(seed, step, 3)
        tensor([0.2665, 0.8288, 0.4128])
        >>> torch.equal(counter_uniform(seed, step, 3), counter_uniform(seed, step, 5)[:3])
        True
    """
    position = torch.arange(count, device=step.device)
    bits = _mix(_mix(_mix(_mix(seed) + stream) + step) + position)
    return ((bits >> 40) & 0xFFFFFF).float() * 2.0**-24


def _mix(x: Tensor) -> Tensor:
    # SplitMix64's finalizer (Steele et al., 2014) in wrapping int64; the masks make arithmetic shifts logical ones.
    x = x + (0x9E3779B97F4A7C15 - 2**64)
    x = (x ^ ((x >> 30) & (2**34 - 1))) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ ((x >> 27) & (2**37 - 1))) * (0x94D049BB133111EB - 2**64)
    return x ^ ((x >> 31) & (2**33 - 1))


def hard_labels(labels: Tensor, uniform: Tensor) -> Tensor:
    """Class of each row, where Mixup and CutMix give class probabilities.

    Args:
        labels: (B,) integer classes, returned as they are; or (B, C) class probabilities, of which one class is drawn.
            A row that is all zero or not finite is unlabelled, -1.
        uniform: (B,) numbers in [0, 1), one draw per row.

    Returns:
        (B,) int64 classes.

    Example:
        >>> hard_labels(torch.tensor([[0.3, 0.7], [0.3, 0.7], [0.0, 0.0]]), torch.tensor([0.2, 0.4, 0.5]))
        tensor([ 0,  1, -1])
    """
    if labels.ndim == 1:
        return labels.long()
    cumulative = labels.float().clamp(min=0).cumsum(dim=1)
    total = cumulative[:, -1]
    drawn = (cumulative <= (uniform * total)[:, None]).sum(dim=1).clamp(max=labels.shape[1] - 1)
    return torch.where(torch.isfinite(total) & (total > 0), drawn, -1)


def sample_slots(filled: Tensor, uniform: Tensor, count: int) -> Tensor:
    """Slots of a simple random sample without replacement; empty slots come last, where too few are filled.

    Args:
        filled: (M,) bool.
        uniform: (M,) numbers in [0, 1), one draw per slot.
        count: K in [1, M].

    Returns:
        (K,) int64 slots, the same on every device.

    Example:
        >>> sample_slots(torch.tensor([True, False, True, True]), torch.tensor([0.9, 0.1, 0.2, 0.5]), 2)
        tensor([2, 3])
    """
    return torch.where(filled, uniform, 1.0).argsort(stable=True)[:count]


def rank_and_world() -> tuple[int, int]:
    """This rank and the number of ranks; (0, 1) without ``torch.distributed``."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
