"""All diagnostics of a run as one flat dict of scalars."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import ArrayLike
from torch import nn

from mbj_plugin.diagnostics.memory_report import memories_report
from mbj_plugin.diagnostics.probe import Probe
from mbj_plugin.diagnostics.step_meter import StepMeter

_logger = logging.getLogger("mbj_plugin")


class Monitor:
    """Collects what the memories hold, what the steps summed up, and how the probe images jitter.

    Args:
        class_counts: (C,) training images per class.
        heads: for each head of the model, kind to memory loss; empty for a run without MBJ.
        meter: of the steps; None for a run without MBJ.
        probe: None where there are no probe images.
        period: steps between two reports of the memories at least, as they are slow.
    """

    def __init__(
        self,
        class_counts: ArrayLike,
        heads: Sequence[Mapping[str, nn.Module]] = (),
        meter: StepMeter | None = None,
        probe: Probe | None = None,
        period: int = 50,
    ) -> None:
        self.class_counts, self.heads, self.meter, self.probe = class_counts, heads, meter, probe
        self.period, self.last_step = period, -period
        self._names: list[str] = []

    def scalars(self, step: int, last: bool = False) -> dict[str, float]:
        """Every scalar, by its TensorBoard tag; always the same keys, NaN where unknown or not measured this time.

        Args:
            step: training iterations done.
            last: measure everything, whatever the period: the run has ended.
        """
        if last or step - self.last_step >= self.period:
            scalars, self.last_step = memories_report(self.heads, self.class_counts), step
            self._names = list(scalars)
        else:
            scalars = dict.fromkeys(self._names, math.nan)
        if self.meter is not None:
            scalars |= self.meter.scalars()
        if self.probe is not None:
            try:
                self.probe.record(step, last)
            except Exception as error:  # out of memory, say: it must not end the run
                _logger.warning("Diagnostics go on without probe images: %r", error)
                self.probe.stop()
            scalars |= self.probe.scalars(step)
        return scalars

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume of the scalars needs."""
        state: dict[str, Any] = {"last_step": self.last_step, "kinds": self._kinds(), "memories": self._names}
        return state if self.probe is None else state | {"probe": self.probe.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with saved scalars; without any, begin anew."""
        if self.probe is not None and "probe" in state:
            self.probe.load_state_dict(state["probe"])
        if state.get("kinds") == self._kinds():  # other memories have not been reported yet
            self.last_step, self._names = state["last_step"], list(state["memories"])

    def _kinds(self) -> list[str]:
        return list(self.heads[0]) if self.heads else []
