"""How many calls a loss has made, known to the host too, so that nothing is computed before the start."""

from __future__ import annotations

import itertools
from numbers import Integral
from typing import Any
from weakref import WeakValueDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn


class CallClock:
    """Host-side twin of a device's call counter: :attr:`started` changes once, and asking it waits for nothing.

    ``torch.compile`` guards on :attr:`started` alone: one recompile. The calls of a compiled graph are counted by an
    operator that runs on the host in each of them, until the start.

    Args:
        start: calls before the start.
    """

    started: bool

    def __init__(self, start: int) -> None:
        self.idle_in_graphs = self.blind = False
        self.set(start, 0)
        self._register()

    def _register(self) -> None:
        number = next(_NUMBERS)
        # A tensor, which one compiled graph takes from any number of losses; torch would make a graph for each int.
        self.number = torch.tensor(number, device="cpu")
        _CLOCKS[number] = self

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy counts for itself.
        self.__dict__.update(state)
        self._register()

    def set(self, start: int, calls: int) -> None:
        """Begin anew: so many calls were made."""
        self.start, self.calls = start, calls
        self.started = self.blind or calls >= start

    def advance(self, calls: int) -> None:
        """Count calls."""
        self.calls += calls
        if self.calls >= self.start:
            self.started = True

    def go_blind(self) -> None:
        """Replays of a CUDA graph will go uncounted: from now on the device alone knows of the start."""
        self.blind = self.started = True

    def count(self, step: Tensor) -> None:
        """Advance the counter on the device and its twin; a captured call is none of Python's.

        Raises:
            RuntimeError: where a captured graph would leave the loss out for ever.
        """
        step.add_(1)
        if not capturing():
            self.advance(1)
        elif not self.idle_in_graphs:
            raise RuntimeError(
                "a CUDA graph captures a compiled memory loss before its start, and would leave it out for ever: "
                "capture after the start, or set idle_in_graphs and capture anew once it has started"
            )


_NUMBERS = itertools.count()
_CLOCKS: WeakValueDictionary[int, CallClock] = WeakValueDictionary()

# Inductor must not put the operator into a CUDA graph, whose replays would not run it; older torch has no such tag.
_TAGS = (torch.Tag.cudagraph_unsafe,) if hasattr(torch.Tag, "cudagraph_unsafe") else ()
torch.library.define("mbj_plugin::count_call", "(Tensor(a!) step, Tensor clock) -> ()", tags=_TAGS)
torch.library.impl("mbj_plugin::count_call", "default", lambda step, clock: _CLOCKS[int(clock)].count(step))
torch.library.register_fake("mbj_plugin::count_call", lambda step, clock: None)


class CountedModule(nn.Module):
    """A loss that counts its calls, in ``step`` on the device and beside it on the host, and knows when it starts.

    Before the start nothing of the loss needs to be computed, and the switch waits for no device: ask :meth:`idle`. A
    CUDA graph is captured with the loss in it, which the device holds at 0 until the start; a host that captures anew
    need not pay for that, see :attr:`idle_in_graphs`. Resume, copies and ``torch.compile`` keep both counters in step.

    Args:
        start: calls before the loss counts.

    Raises:
        ValueError: for a start that is no number of steps.
    """

    step: Tensor

    def __init__(self, start: int) -> None:
        super().__init__()
        # Integral: NumPy's integers too. int is one as well, but type checkers do not know that.
        if not isinstance(start, int | Integral) or start < 0:
            raise ValueError(f"start must be a number of steps >= 0, got {start!r}")
        self._clock, self._asked_device = CallClock(int(start)), False
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    @property
    def start(self) -> int:
        """Calls before the loss counts. Setting it reads the device's counter, once."""
        return self._clock.start

    @start.setter
    def start(self, start: int) -> None:
        self._clock.set(start, self._calls())

    @property
    def started(self) -> bool:
        """Whether the next call computes the loss; asking waits for no device. True from the start on, and earlier
        where a CUDA graph was captured, whose replays the host does not see."""
        return self._clock.started

    @property
    def idle_in_graphs(self) -> bool:
        """Whether a CUDA graph captured before the start leaves the loss out (default False). Only for a host that
        calls :meth:`advance` after each replay, and captures anew once :attr:`started` is True."""
        return self._clock.idle_in_graphs

    @idle_in_graphs.setter
    def idle_in_graphs(self, idle: bool) -> None:
        self._clock.idle_in_graphs = idle

    def advance(self, calls: int = 1) -> None:
        """Tell the host of calls that Python did not make: replays of a CUDA graph."""
        self._clock.advance(calls)

    def idle(self) -> bool:
        """Whether the loss can be left out of this call."""
        if torch.compiler.is_compiling():
            return not self.started
        if capturing():
            if not self.idle_in_graphs:
                self._clock.go_blind()
        elif not self._asked_device and rank_and_world()[1] > 1:
            # DDP may have brought rank 0's resumed counter to ranks that loaded nothing.
            self._asked_device = True
            self._clock.set(self.start, self._calls())
        return not self.started

    def count_call(self) -> None:
        """Close this call."""
        if self.started:
            self.step.add_(1)
        elif torch.compiler.is_compiling():
            torch.ops.mbj_plugin.count_call(self.step, self._clock.number)
        else:
            self._clock.count(self.step)

    def _calls(self) -> int:
        return 0 if self.step.is_meta else int(self.step)

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._clock.set(self.start, self._calls())


class _NoLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dtype: torch.dtype, *tensors: Tensor) -> Tensor:
        ctx.inputs = len(tensors)
        return tensors[0].new_zeros((), dtype=dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[None, ...]:
        return (None,) * (1 + ctx.inputs)


def no_loss(dtype: torch.dtype, *tensors: Tensor) -> Tensor:
    """0 in the graph of the given tensors: ``backward`` and DDP find them in use, but no gradient is made for them."""
    return _NoLoss.apply(dtype, *tensors)


def capturing() -> bool:
    """Whether a CUDA graph is being captured."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def rank_and_world() -> tuple[int, int]:
    """This rank and the number of ranks; (0, 1) without ``torch.distributed``."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
