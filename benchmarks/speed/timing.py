"""Two things timed in turn in one process, and what a row says of where."""

import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import mbj_plugin

Call = Callable[[], object]
Pair = tuple[str, Call, Call]
#: Of two calls, those of each turn.
Seconds = tuple[list[float], list[float]]


def in_turn(first: Call, second: Call, repeats: int, wait: Call = lambda: None) -> Seconds:
    """Seconds of each of two calls that take turns; once before that they run untimed.

    Args:
        first, second: what is timed.
        repeats: calls of each, >= 1.
        wait: for the device.
    """
    seconds: Seconds = ([], [])
    for turn in range(repeats + 1):
        for call, mine in zip((first, second), seconds, strict=True):
            wait()
            began = time.perf_counter()
            call()
            wait()
            if turn:
                mine.append(time.perf_counter() - began)
    return seconds


def ratio(seconds: Seconds) -> dict[str, Any]:
    """The part of a row that is measured: the ratio of the medians, and of three turns or more the standard error of
    the mean of each turn's own ratio."""
    medians = [statistics.median(each) for each in seconds]
    found: dict[str, Any] = {"ratio": round(medians[0] / medians[1], 4), "repeats": len(seconds[0])}
    if found["repeats"] > 2:
        of_turns = [one / other for one, other in zip(*seconds, strict=True)]
        found["error"] = round(statistics.stdev(of_turns) / len(of_turns) ** 0.5, 4)
    return found | {"microseconds": [round(1e6 * median, 1) for median in medians]}


def versions() -> dict[str, str]:
    """Of what is timed."""
    found = {"mbj_plugin": mbj_plugin.__version__, "torch": torch.__version__, "python": platform.python_version()}
    for peer in ("timm", "fastreid", "pytorch-metric-learning", "lightly"):
        try:
            found[peer] = importlib.metadata.version(peer)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
