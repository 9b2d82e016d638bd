"""Where a command is in the runs that it was asked for, and how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence


class Progress:
    """Time left of a run and of all runs, from the epochs that have been trained.

    Args:
        runs: a name for each run, in their order.
        clock: seconds.
    """

    def __init__(self, runs: Sequence[str] = ("",), clock: Callable[[], float] = time.monotonic) -> None:
        self.runs, self.clock = runs, clock
        self.number, self.started = -1, 0.0
        self.seconds: list[float] = []  # of each run before this one

    def begin(self, first_epoch: int, epochs: int) -> None:
        """A run begins its first epoch.

        Args:
            first_epoch: 0, or where a resumed run goes on.
            epochs: of the whole run.
        """
        if self.number >= 0:
            self.seconds.append(self.clock() - self.started)
        self.number += 1
        self.first_epoch, self.epochs, self.started = first_epoch, epochs, self.clock()

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
        passed = self.clock() - self.started
        left = (self.epochs - done) * passed / (done - self.first_epoch)
        own = f"{duration(left)} left" if done < self.epochs else f"took {duration(passed)}"
        rest = (len(self.runs) - self.number - 1) * (sum(self.seconds) + passed + left) / (self.number + 1)
        all_left = f", {duration(left + rest)} left of all runs" if self.number + 1 < len(self.runs) else ""
        return own + all_left


def duration(seconds: float) -> str:
    """Seconds as a reader wants them: "40 s", "12 min", "3 h 05 min", "2 d 04 h"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours:02d} h"
