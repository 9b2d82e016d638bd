"""Cells of the tables, for every harness: rows as JSON lines, who runs which cell, and what a call shares."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.multiprocessing as mp
import yaml

from mbj_plugin.command_line import did_you_mean


@dataclasses.dataclass(frozen=True)
class Job:
    """What every worker of a call shares.

    Args:
        data: folder of the images.
        results: JSON lines, one per finished cell.
        state_dir: locks of the cells under way, and what each leaves there.
        settings_file: None = the shipped one.
        processes: side by side.
        threads: of torch on the CPU, per process.
    """

    data: str
    results: str
    state_dir: str
    settings_file: str | None = None
    processes: int = 1
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("processes", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class Retired:
    """A method that runs no more. Its rows stay, and pages show them.

    Args:
        label: what it was, in words.
        commit: the last one that has its code.
    """

    label: str
    commit: str

    def __str__(self) -> str:
        return f"{self.label} (retired: the code is in {self.commit})"


def run_in_processes(cells: Sequence[Any], job: Job, work: Callable[[int, Any, Any], None]) -> int:
    """Call ``work(rank, cells, job)`` in each process; the rows that they append say what is done.

    Returns:
        Number of cells left without a row.
    """
    Path(job.state_dir).mkdir(parents=True, exist_ok=True)
    Path(job.results).parent.mkdir(parents=True, exist_ok=True)
    if job.processes == 1:
        work(0, cells, job)
    else:
        mp.spawn(work, (cells, job), nprocs=job.processes)
    finished = finished_cells(job.results, type(cells[0])) if cells else set()
    return sum(cell not in finished for cell in cells)


def read_rows(path: str | Path, kind: type) -> list[dict[str, Any]]:
    """Rows of a results file, [] where there is none.

    Args:
        path: JSON lines.
        kind: dataclass of the cells; a row has its fields, those without a default at least, and "settings".

    Raises:
        ValueError: for a line that is no row.
    """
    if not Path(path).exists():
        return []
    needed = (field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING)
    keys = [*needed, "settings"]
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
    return kind(**{field.name: row[field.name] for field in dataclasses.fields(kind) if field.name in row})


def finished_cells(path: str | Path, kind: type) -> set[Any]:
    """The cells that have a row."""
    return {cell_of(row, kind) for row in read_rows(path, kind)}


def check_rows(path: str | Path, cells: Sequence[Any], settings: Any) -> None:
    """A cell that is there already must be there once, and have been run with the settings of today.

    Args:
        path: of the results file.
        cells: those that are asked for, of one type.
        settings: ``settings.of(cell)`` is what the row of a cell holds as "settings".

    Raises:
        ValueError: where it was not.
    """
    wanted, seen = set(cells), set()
    for row in read_rows(path, type(cells[0])) if cells else ():
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


def check_known(what: str, name: str, names: Iterable[str]) -> None:
    """Raises ValueError where ``name`` is none of ``names``, with the nearest one and all of them.

    Args:
        what: kind of the name, as in "unknown WHAT 'name'".
        name: as given.
        names: those that there are.
    """
    if name not in (names := sorted(names)):
        raise ValueError(f"unknown {what} {name!r}{did_you_mean(name, names)} There are: {', '.join(names)}")


def read_settings(path: Path, parts: set[str]) -> dict[str, Any]:
    """The content of a YAML file of settings, which has these parts and may have "retired".

    Raises:
        ValueError: for a file that cannot be read or has other parts.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read the settings {path}: {error}") from error
    if not isinstance(content, dict) or set(content) - {"retired"} != parts:
        raise ValueError(f"the settings {path} must hold {', '.join(sorted(parts))} (and may hold retired)")
    return content
