"""Two things timed in turn in one process, and what a row says of where."""

import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable

import torch

import mbj_plugin

Call = Callable[[], object]
Pair = tuple[str, Call, Call]


def in_turn(first: Call, second: Call, repeats: int, wait: Call = lambda: None) -> tuple[float, float]:
    """Median seconds of each of two calls that take turns; once before that they run untimed.

    Args:
        first, second: what is timed.
        repeats: calls of each, >= 1.
        wait: for the device.

    Returns:
        Seconds of the first and of the second.
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 1):
        for call, mine in zip((first, second), seconds, strict=True):
            wait()
            began = time.perf_counter()
            call()
            wait()
            if turn:
                mine.append(time.perf_counter() - began)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def versions() -> dict[str, str]:
    """Of what is timed."""
    found = {"mbj_plugin": mbj_plugin.__version__, "torch": torch.__version__, "python": platform.python_version()}
    for peer in ("timm", "fastreid", "pytorch-metric-learning", "lightly"):
        try:
            found[peer] = importlib.metadata.version(peer)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
