"""The first decay of fast-reid's schedules, and the iteration at which the memory loss starts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mbj_plugin.start import Start, start_at


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

    def waiting_epochs(self, iters_per_epoch: int) -> int:
        """Epochs that do not advance the schedule: as in fast-reid's LRScheduler hook, those of warm-up or delay."""
        return max(math.ceil(self.warmup_iters / iters_per_epoch), self.delay_epochs + 1) - 1

    def decay_epoch(self, iters_per_epoch: int) -> float:
        """Epoch (from 0) at whose begin the learning rate first falls: the first of STEPS; for a cosine, which has no
        steps, the middle of its fall. Infinite where there is none."""
        waiting = self.waiting_epochs(iters_per_epoch)
        if self.name == "MultiStepLR":
            return waiting + min(self.steps) if self.steps else math.inf
        return waiting + (self.max_epoch - waiting) / 2

    def start_iteration(self, start: Start, iters_per_epoch: int) -> int:
        """MODEL.MBJ.START as an iteration.

        Args:
            start: of MBJ's settings, in iterations.
            iters_per_epoch: iterations of one epoch, >= 1.

        Raises:
            ValueError: for a start past the end of the run.
        """
        decay = self.decay_epoch(iters_per_epoch) * iters_per_epoch
        return int(start_at(start, self.max_epoch * iters_per_epoch, decay, "iterations"))

    def warning(self, start: Start, iters_per_epoch: int) -> str:
        """What to say of a START that is not where the user may think; empty where all is well. Arguments as above."""
        if start != "auto" or self.decay_epoch(iters_per_epoch) < self.max_epoch:
            return ""
        return (
            "MODEL.MBJ.START is auto, the first decay of the learning rate, but none comes within SOLVER.MAX_EPOCH "
            f"{self.max_epoch} ({iters_per_epoch} iterations each; SCHED {self.name}, STEPS {list(self.steps)}, "
            f"DELAY_EPOCHS {self.delay_epochs}, WARMUP_ITERS {self.warmup_iters}): the memory loss starts at iteration "
            f"{self.start_iteration(start, iters_per_epoch)}. Set START to an iteration or a fraction."
        )
