"""What a run left, in plain arrays: hosts fill it in, the report draws it. Everything may be missing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mbj_plugin.command_line import reason
from mbj_plugin.files import read_jsonl
from mbj_plugin.longtail import images_of_classes
from mbj_plugin.start import is_number
from mbj_plugin.tools.report.search import Search


@dataclass
class Memory:
    """The filled slots of a memory: rows (M, D), labels (M,), ages (M,) in iterations; ``size`` slots in all."""

    kind: str
    size: int
    rows: np.ndarray
    labels: np.ndarray
    ages: np.ndarray


@dataclass
class Features:
    """(N, D) inputs of the classifier, in evaluation mode, and (N,) classes."""

    rows: np.ndarray
    labels: np.ndarray


@dataclass
class Run:
    """A run of any host.

    ``curves`` maps a name to (x, y) lists, x in ``curve_unit``s; ``diagnostics`` are the rows of diagnostics.jsonl;
    ``missing`` says in one line each what could not be read.
    """

    name: str
    curve_unit: str = "epoch"
    facts: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    class_counts: np.ndarray | None = None
    class_names: list[str] | None = None
    errors: dict[str, float] = field(default_factory=dict)
    class_errors: np.ndarray | None = None
    truth: np.ndarray | None = None
    predicted: np.ndarray | None = None
    curves: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)
    diagnostics: list[dict[str, Any]] = field(default_factory=list)
    memories: list[Memory] = field(default_factory=list)
    train_features: Features | None = None
    test_features: Features | None = None
    searches: list[Search] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.name = printable(self.name)

    @contextmanager
    def part(self, what: str) -> Iterator[None]:
        """Read one part of the run; what goes wrong becomes a line of ``missing``, and the other parts are read."""
        try:
            yield
        except Exception as error:  # a broken file can raise anything, and must not cost the rest of the page
            kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
            self.missing.append(f"{what}: {kind}{reason(error)[:300]}")

    def class_name(self, label: int) -> str:
        """The name of a class, or its number."""
        return printable(self.class_names[label]) if self.class_names else str(label)


def printable(name: str) -> str:
    """The name of a folder in one line: what neither a page nor a figure can hold becomes a question mark."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def series(rows: list[dict[str, Any]], x: str, y: str) -> tuple[list[float], list[float]]:
    """The points of ``y`` over ``x`` in rows that have both as finite numbers."""
    pairs: list[tuple[Any, Any]] = [(row.get(x), row.get(y)) for row in rows]
    points = [pair for pair in pairs if all(is_number(v) and math.isfinite(v) for v in pair)]
    return [float(a) for a, _ in points], [float(b) for _, b in points]


def read_diagnostics(run: Run, folder: Path) -> None:
    """Read ``diagnostics.jsonl``, which both hosts write while they train."""
    with run.part("what was recorded while training (diagnostics.jsonl)"):
        path = folder / "diagnostics.jsonl"
        if not path.is_file():
            raise ValueError("there is no such file, so no memory and no jitter over iterations")
        run.diagnostics, broken = read_jsonl(path, "step")
        if broken:
            run.missing.append(f"diagnostics.jsonl: {broken} broken line{'s' * (broken > 1)} left out")


def read_memories(
    run: Run,
    folder: Path,
    read_checkpoint: Callable[[Run, Path], dict[str, Any]],
    states: Callable[[dict[str, Any]], dict[str, dict[str, Tensor]]],
) -> dict[str, Any]:
    """Read what was recorded of the memories, the checkpoint, and the memories in it.

    Args:
        run: of the report.
        folder: of the run.
        read_checkpoint: the host's; it raises where there is none.
        states: of a checkpoint, each memory's saved bank by its kind.

    Returns:
        The checkpoint, empty where it cannot be read.
    """
    read_diagnostics(run, folder)
    checkpoint: dict[str, Any] = {}
    with run.part("checkpoint"):
        checkpoint = read_checkpoint(run, folder)
    with run.part("memory"):
        for kind, state in states(checkpoint).items():
            run.memories.append(read_bank(kind, state))
    return checkpoint


def read_bank(kind: str, state: dict[str, Tensor]) -> Memory:
    """The memory in the saved state of a :class:`mbj_plugin.MemoryBank`.

    Args:
        kind: "feature" or "prototype".
        state: its state dict.

    Raises:
        ValueError: where a tensor is missing.
    """
    try:
        rows, labels, calls, now = (state[key] for key in ("slot_rows", "slot_labels", "slot_calls", "calls"))
    except KeyError as error:
        raise ValueError(f"the checkpoint holds no {error.args[0]} of the {kind} memory") from error
    filled = labels[:-1] >= 0  # the last slot is the one for what is not stored
    ages = now - calls[:-1]
    kept = [tensor[filled].cpu().numpy() for tensor in (rows[:-1], labels[:-1], ages)]
    return Memory(kind, len(filled), *kept)


def first_of_each(labels: np.ndarray, classes: np.ndarray, count: int) -> np.ndarray:
    """Indices of the first ``count`` images of each of the classes."""
    of_classes = images_of_classes(labels, int(max(labels.max(initial=-1), classes.max(initial=-1))) + 1)
    return np.sort(np.concatenate([of_classes[c][:count] for c in classes]))


def short_names(folders: list[Path]) -> list[str]:
    """A name for each folder: the part of its path that tells it from the others."""
    paths = [folder.resolve().parts for folder in folders]
    if len(set(paths)) < 2:
        return [parts[-1] for parts in paths]
    first = 0
    while all(len(p) > first + 1 and p[first] == paths[0][first] for p in paths):
        first += 1
    last = 0
    while all(len(p) - last > first + 1 and p[-1 - last] == paths[0][-1 - last] for p in paths):
        last += 1
    return ["/".join(parts[first : len(parts) - last]) for parts in paths]
