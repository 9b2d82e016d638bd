"""What fast-reid's writers show is smoothed: of ``loss_mbj`` they must not smooth away that it has begun."""

from __future__ import annotations

from collections.abc import Iterable

from fastreid.engine.train_loop import HookBase
from fastreid.utils.events import EventStorage
from fastreid.utils.history_buffer import HistoryBuffer


class SmoothFromStart(HookBase):
    """Where the memory loss begins to count, its history begins anew, and that of the sum that it is part of.

    The console shows medians over 200 iterations, metrics.json and TensorBoard over 20. With the zeros from before the
    start they would go on saying 0.

    Args:
        start: iteration of the run at which the loss begins to count.
    """

    def __init__(self, start: int) -> None:
        self.start = start

    def before_step(self) -> None:
        if self.trainer.iter == self.start:
            for name in ("loss_mbj", "total_loss"):
                self.trainer.storage._history.pop(name, None)


def show_latest(storage: EventStorage, names: Iterable[str]) -> None:
    """Let the console show the last value of scalars that are means of an epoch already, and no median over epochs."""
    for name in names:
        storage._history[name] = HistoryBuffer(max_length=1)
