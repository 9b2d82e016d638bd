"""Draws that are the same on all ranks and devices, and what counts the calls that they belong to."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mbj_plugin.checks import RANGES

PAGE = 16  # calls whose numbers are drawn at once


def counter_uniform(seed: Tensor, step: Tensor, count: int, stream: int = 0) -> Tensor:
    """(count,) numbers in [0, 1) that depend on (seed, step, position, stream) alone.

    A counter-based generator (Salmon et al., 2011, https://doi.org/10.1145/2063384.2063405) on SplitMix64's mixer: the
    same numbers on every rank and device, no state beside the step, no host sync.

    Args:
        seed: 0-dim int64 tensor.
        step: 0-dim int64 tensor, or (K,) for K steps at once.
        count: numbers to draw for a step.
        stream: independent draws of one step have different streams.

    Returns:
        (count,) or (K, count) fp32 tensor on the device of ``step``, multiples of 2^-24.

    Example:
        >>> seed, step = torch.tensor(0), torch.tensor(7)
        >>> counter_uniform(seed, step, 3)
        tensor([0.2665, 0.8288, 0.4128])
        >>> torch.equal(counter_uniform(seed, step, 3), counter_uniform(seed, step, 5)[:3])
        True
    """
    position = torch.arange(count, device=step.device)
    bits = _mix(_mix(_mix(_mix(seed) + stream) + step)[..., None] + position)
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


class DrawnModule(nn.Module):
    """What draws numbers of its own in each call, and knows when it starts.

    Calls are counted in ``step`` on the device and beside it on the host, so that asking for the start waits for no
    device. The host does not see the calls of a compiled or captured graph: from then on the device alone counts.

    Args:
        start: calls before it starts.
        seed: of the draws.

    Raises:
        ValueError: for a number out of range.
    """

    seed: Tensor
    step: Tensor

    def __init__(self, start: int, seed: int) -> None:
        super().__init__()
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.register_buffer("seed", torch.tensor(RANGES["seed"].checked("seed", seed), dtype=torch.long))
        self._blind = self._asked_device = False
        self.start = start

    @property
    def start(self) -> int:
        """Calls before the start. Setting it reads the device's counter, once."""
        return self._start

    @start.setter
    def start(self, start: int) -> None:
        self._start = RANGES["start"].checked("start", start)
        self._read_step()

    def _read_step(self) -> None:
        self._calls = 0 if self.step.is_meta else int(self.step)
        self._pages: dict[int, tuple[Any, tuple[Tensor, ...]]] = {}

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._read_step()

    @property
    def started(self) -> bool:
        """Whether the host lets the next call count; asking waits for no device."""
        return self._blind or self._calls >= self._start

    def host_counts(self) -> bool:
        """Whether the host sees each call: not inside a compiled or captured graph, nor ever after one."""
        if torch.compiler.is_compiling() or (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()):
            self._blind = True
        elif not self._asked_device and rank_and_world()[1] > 1:
            # DDP may have brought rank 0's resumed counter to ranks that loaded nothing.
            self._asked_device = True
            self._read_step()
        return not self._blind

    def count_call(self) -> None:
        """Close this call."""
        self.step.add_(1)
        if not torch.compiler.is_compiling():
            self._calls += 1

    def uniform(self, count: int, stream: int) -> Tensor:
        """(count,) numbers in [0, 1) of this call; drawn for several calls at once, where the host knows the call."""
        if not self.host_counts():
            return counter_uniform(self.seed, self.step, count, stream)
        number, line = divmod(self._calls, PAGE)
        key = (number, count, self.step.device)
        if stream not in self._pages or self._pages[stream][0] != key:
            steps = torch.arange(number * PAGE, (number + 1) * PAGE, device=self.step.device)
            self._pages[stream] = (key, counter_uniform(self.seed, steps, count, stream).unbind())
        return self._pages[stream][1][line]


def rank_and_world() -> tuple[int, int]:
    """This rank and the number of ranks; (0, 1) without ``torch.distributed``."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def check_even(rows: Tensor) -> None:
    """On a CPU, where gloo would end the process without a word, an error for ranks with different numbers of rows.

    Raises:
        ValueError: naming them.
    """
    _, world = rank_and_world()
    if world == 1 or not rows.is_cpu or torch.compiler.is_compiling():
        return
    counts = [torch.zeros(1, dtype=torch.long) for _ in range(world)]
    dist.all_gather(counts, torch.tensor([len(rows)]))
    if len({int(count) for count in counts}) > 1:
        raise ValueError(
            f"the ranks have batches of {[int(count) for count in counts]} rows, and each must have the same number: "
            "take a sampler that gives every rank as many images, and drop_last=True"
        )


def all_gather(tensor: Tensor) -> Tensor:
    """(world * B, ...) rows of all ranks, in the order of ranks. Every rank must bring the same number of rows."""
    _, world = rank_and_world()
    if world == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world)]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)
