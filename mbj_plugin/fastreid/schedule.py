"""When the memory loss starts to count: MODEL.MBJ.START in iterations of the run.

The paper does not say when. Early features move fast, and what is remembered of them misleads; after the first decay of
the learning rate the model jitters around where it stays. The memory fills from the first iteration on in any case.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Literal

logger = logging.getLogger("fastreid.mbj_plugin")


@dataclass(frozen=True)
class Schedule:
    """The part of SOLVER that says when the learning rate falls; epochs but for ``warmup_iters``."""

    name: str
    steps: tuple[int, ...]
    max_epoch: int
    delay_epochs: int
    warmup_iters: int
    batch_size: int

    @classmethod
    def from_config(cls, cfg) -> Schedule:
        """From fast-reid's SOLVER node."""
        s = cfg.SOLVER
        return cls(s.SCHED, tuple(s.STEPS), s.MAX_EPOCH, s.DELAY_EPOCHS, s.WARMUP_ITERS, s.IMS_PER_BATCH)

    def decay_epoch(self, iters_per_epoch: int) -> float:
        """Epoch (from 0) at whose begin the learning rate first falls: the first of STEPS; for a cosine, which has no
        steps, the middle of its fall. Infinite where there is none."""
        # As in fast-reid's LRScheduler hook, epochs of warm-up or delay do not advance the schedule.
        waiting = max(math.ceil(self.warmup_iters / iters_per_epoch), self.delay_epochs + 1) - 1
        if self.name == "MultiStepLR":
            return waiting + min(self.steps) if self.steps else math.inf
        return waiting + (self.max_epoch - waiting) / 2

    def start_iteration(self, start: Literal["auto"] | int | float, iters_per_epoch: int) -> int:
        """MODEL.MBJ.START as an iteration.

        Args:
            start: "auto", an iteration (int), or a fraction of the run (float below 1).
            iters_per_epoch: iterations of one epoch, >= 1.
        """
        run = self.max_epoch * iters_per_epoch
        if start == "auto":
            decay = self.decay_epoch(iters_per_epoch) * iters_per_epoch
            if decay < run:
                return int(decay)
            logger.warning(
                "MODEL.MBJ.START is auto, the first decay of the learning rate, but SOLVER.STEPS %s brings none within "
                "%d epochs: the memory loss starts in the middle of the run. Set START to an iteration or a fraction.",
                list(self.steps),
                self.max_epoch,
            )
            return run // 2
        if isinstance(start, float):
            return int(start * run)
        if start >= run:
            logger.warning(
                "MODEL.MBJ.START is iteration %d, but the run has only %d: the memory loss never counts. Set START to "
                "an earlier iteration, a fraction of the run or auto.",
                start,
                run,
            )
        return start
