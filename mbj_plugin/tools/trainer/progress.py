"""Where a command is in the runs that it was asked for, and how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from tqdm import tqdm


class Progress:
    """Time left of a run and of all runs, from the epochs that have been trained.

    Args:
        runs: a name for each run, in their order.
        clock: seconds.
    """

    def __init__(self, runs: Sequence[str] = ("",), clock: Callable[[], float] = time.monotonic) -> None:
        self.runs, self.clock = runs, clock
        self.number, self.first_started = -1, 0.0

    def begin(self, first_epoch: int, epochs: int) -> None:
        """A run begins its first epoch.

        Args:
            first_epoch: 0, or where a resumed run goes on.
            epochs: of the whole run.
        """
        self.number += 1
        self.first_epoch, self.epochs, self.started = first_epoch, epochs, self.clock()
        self.first_started = self.first_started if self.number else self.started

    @property
    def run(self) -> str:
        """Which of the runs this is; empty where there is only one."""
        return f"run {self.number + 1}/{len(self.runs)} ({self.runs[self.number]})" if len(self.runs) > 1 else ""

    def bar(self, epoch: int) -> str:
        """What stands before the progress bar of an epoch: the run, the epoch, the time left of all runs."""
        place = [self.run, f"epoch {epoch}/{self.epochs - 1}", self.left(epoch) if epoch > self.first_epoch else ""]
        return "  ".join(filter(None, place))

    def left(self, done: int) -> str:
        """Time left once ``done`` epochs of this run are trained: of this run and, where there are several, of all."""
        now, runs_left = self.clock(), len(self.runs) - self.number - 1
        left = (self.epochs - done) * (now - self.started) / (done - self.first_epoch)
        own = f"{_text(left)} left" if done < self.epochs else f"took {_text(now - self.started)}"
        of_a_run = (now - self.first_started + left) / (self.number + 1)
        return own + (f", {_text(left + runs_left * of_a_run)} left of all runs" if runs_left else "")


def _text(seconds: float) -> str:
    return tqdm.format_interval(round(seconds))
