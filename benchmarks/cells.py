"""Result rows of many runs as JSON lines, who runs which, and how means, spreads and pairs are written."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def read_rows(path: str | Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of a results file, [] where there is none.

    Raises:
        ValueError: for a line that is no JSON object with all ``keys``.
    """
    if not Path(path).exists():
        return []
    rows = []
    with open(path) as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # no half-written line
        lines = file.read().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            missing = [key for key in keys if key not in row]
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is no row of results ({error}): mend or remove it") from error
        if missing:
            raise ValueError(f"{path}, line {number} is no row of results (it lacks {missing}): mend or remove it")
        rows.append(row)
    return rows


def append_row(path: str | Path, row: dict[str, Any]) -> None:
    """Append one line in one write, under a lock: concurrent workers never mix lines."""
    line = json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, line.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cell_of(row: Mapping[str, Any], kind: type) -> Any:
    """The cell, a dataclass of type ``kind``, that a row is of."""
    return kind(**{field.name: row[field.name] for field in dataclasses.fields(kind)})


def check_rows(rows: Sequence[Mapping[str, Any]], cells: Sequence[Any], settings: Any, path: str | Path) -> None:
    """A cell that is there already must be there once, and have been run with the settings of today.

    Args:
        rows: of the results file.
        cells: those that are asked for, of one type.
        settings: ``settings.of(cell)`` is what the row of a cell holds as "settings".
        path: of the results file, for the message.

    Raises:
        ValueError: where it was not.
    """
    wanted, seen = set(cells), set()
    for row in rows if cells else ():
        cell = cell_of(row, type(cells[0]))
        if cell in seen:
            raise ValueError(f"{path} holds {cell} twice: remove one of the rows")
        if cell in wanted and row["settings"] != settings.of(cell):
            raise ValueError(
                f"{path} holds {cell} with other settings: give the new ones a new name, or remove the old rows"
            )
        seen.add(cell)


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether this worker holds the lock. A dead worker holds none: the system lets go of it."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation; the mean alone for one value."""
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def paired(ours: Mapping[int, float], theirs: Mapping[int, float], lower_is_better: bool, digits: int = 1) -> str:
    """Mean of ours - theirs over the seeds that both have ± its standard error, and in how many ours is better.

    Args:
        ours: seed to value.
        theirs: seed to value.
        lower_is_better: for errors; False for scores.
        digits: behind the point.

    Returns:
        As ``−1.2 ± 0.3 (4/5)``; empty without a common seed.
    """
    differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    if not differences:
        return ""
    text = f"{statistics.mean(differences):+.{digits}f}".replace("-", "−")
    if len(differences) > 1:
        text += f" ± {statistics.stdev(differences) / len(differences) ** 0.5:.{digits}f}"
    better = sum(d < 0 if lower_is_better else d > 0 for d in differences)
    return f"{text} ({better}/{len(differences)})"


def write_section(page: str | Path, name: str, text: str) -> None:
    """Replace one section of a Markdown page that several commands write, or add it at the end.

    Args:
        page: file.
        name: of the section; it stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``.
        text: Markdown.

    Raises:
        ValueError: where only one of the two lines is there.
    """
    page = Path(page)
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    section = f"{begin}\n{text.strip()}\n{end}"
    old = page.read_text() if page.exists() else ""
    if (begin in old) != (end in old):
        raise ValueError(f"{page} has only one of {begin} and {end}: put the other one back, or remove the section")
    if begin in old:
        new = old[: old.index(begin)] + section + old[old.index(end) + len(end) :]
    else:
        new = "\n\n".join(filter(None, [old.strip(), section]))
    page.write_text(new.rstrip() + "\n")
