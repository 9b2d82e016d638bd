"""When the memory loss starts to count: one rule for every host, which the paper leaves open.

Early features move fast, and what is remembered of them misleads; after the first decay of the learning rate the model
jitters around where it stays. The memory fills from the first step on in any case.
"""

from __future__ import annotations

from typing import Any

from mbj_plugin.checks import is_number

Start = str | int | float  # the one text is "auto"
WANTED = "'auto' (the learning rate's first decay), a fraction of the run below 1, or a number of {unit} (1, not 1.0)"
LATEST = 10**12
# Of a run whose learning rate never falls: the paper's 120 of 200 epochs.
WITHOUT_DECAY = 0.6


def as_start(value: Any) -> Start | None:
    """A start in its own type: "auto", a fraction of the run (0 < x < 1), or a number of units (0, or >= 1).

    None for what is no start. The number 1 is a unit, 1.0 could be the whole run too, and so is none.
    """
    if value == "auto":
        return "auto"
    if not is_number(value) or not 0 <= value <= LATEST:
        return None
    if value == 1 and isinstance(value, float):
        return None
    number = float(value)
    return int(number) if number.is_integer() else number


def start_at(start: Start, length: int, first_decay: float | None, unit: str) -> float:
    """Where in the run the memory loss starts.

    Args:
        start: of :func:`as_start`.
        length: of the run, in the host's unit.
        first_decay: where the learning rate first falls, in the same unit; None, or beyond the run, where it does not.
        unit: its name, in the plural.

    Raises:
        ValueError: for a start past the end of the run.
    """
    if start == "auto":
        return first_decay if first_decay is not None and first_decay < length else round(WITHOUT_DECAY * length)
    assert not isinstance(start, str)
    at = start * length if 0 < start < 1 else start
    if at >= length:
        raise ValueError(
            f"the memory loss would start at {unit[:-1]} {start}, past the end of the run of {length} {unit}: "
            "give an earlier one, a fraction of the run or 'auto'"
        )
    return at
