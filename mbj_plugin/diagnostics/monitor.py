"""All diagnostics of a run as one flat dict of scalars."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import ArrayLike
from torch import nn

from mbj_plugin.diagnostics.memory_report import memories_report
from mbj_plugin.diagnostics.probe import Probe

_logger = logging.getLogger("mbj_plugin")


class Monitor:
    """Measures what the memories hold, and how the probe images jitter.

    Args:
        class_counts: (C,) training images per class.
        heads: for each head of the model, kind to memory loss; empty for a run without MBJ.
        probe: None where there are no probe images.
    """

    def __init__(
        self, class_counts: ArrayLike, heads: Sequence[Mapping[str, nn.Module]] = (), probe: Probe | None = None
    ) -> None:
        self.class_counts, self.heads, self.probe = class_counts, heads, probe

    def scalars(self) -> dict[str, float]:
        """Every scalar, by its TensorBoard tag, NaN where unknown. Call it once an epoch."""
        scalars = memories_report(self.heads, self.class_counts)
        if self.probe is not None:
            try:
                scalars |= self.probe.scalars()
            except Exception as error:  # out of memory, say: it must not end the run
                _logger.warning("Diagnostics go on without probe images: %r", error)
                self.probe = None
        return scalars

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume of the scalars needs."""
        return {} if self.probe is None else self.probe.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with saved scalars; without any, begin anew."""
        if self.probe is not None:
            self.probe.load_state_dict(state)
