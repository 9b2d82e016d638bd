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
class SavedMemory:
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
class Scores:
    """One classifier on the test images.

    ``errors`` are those of :func:`mbj_plugin.diagnostics.groups.group_errors`; ``by_class`` (C,) percent, NaN for a
    class without test images; ``answers`` (N,) classes beside the run's ``truth``, where the model was run.
    """

    name: str
    errors: dict[str, float]
    by_class: np.ndarray
    answers: np.ndarray | None = None


@dataclass
class RunRecord:
    """A run of any host.

    ``classifiers`` are those of the run, "batch", "batch_adjusted" or "memory", and ``chosen`` is the key of the one
    that the user chose at the start. ``test_images`` is a number. ``retrieval`` maps a score, "mAP" say, to percent.
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
    classifiers: dict[str, Scores] = field(default_factory=dict)
    chosen: str = "batch"
    test_images: int = 0
    truth: np.ndarray | None = None
    retrieval: dict[str, float] = field(default_factory=dict)
    curves: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)
    diagnostics: list[dict[str, Any]] = field(default_factory=list)
    memories: list[SavedMemory] = field(default_factory=list)
    train_features: Features | None = None
    test_features: Features | None = None
    searches: list[Search] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

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
        return self.class_names[label] if self.class_names else str(label)


def side_by_side(runs: list[RunRecord]) -> list[tuple[str, RunRecord, Scores]]:
    """What figures compare: the classifiers of one run, or of several runs the one that each was trained for."""
    if len(runs) == 1:
        return [(scores.name, runs[0], scores) for scores in runs[0].classifiers.values()]
    return [(run.name, run, run.classifiers[run.chosen]) for run in runs if run.chosen in run.classifiers]


def colour_of(runs: list[RunRecord], number: int) -> int:
    """Which colour a run has; a run that is shown alone has that of the classifier that it was trained for."""
    return list(runs[0].classifiers).index(runs[0].chosen) if len(runs) == 1 and runs[0].classifiers else number


def series(rows: list[dict[str, Any]], x: str, y: str) -> tuple[list[float], list[float]]:
    """The points of ``y`` over ``x`` in rows that have both as finite numbers."""
    pairs: list[tuple[Any, Any]] = [(row.get(x), row.get(y)) for row in rows]
    points = [pair for pair in pairs if all(is_number(v) and math.isfinite(v) for v in pair)]
    return [float(a) for a, _ in points], [float(b) for _, b in points]


def read_lines(run: RunRecord, path: Path, key: str) -> list[dict[str, Any]]:
    """Rows of a file of JSON objects by ``key``; says how many lines are broken."""
    rows, broken = read_jsonl(path, key)
    if broken:
        run.missing.append(f"{path.name}: {broken} broken line{'s' * (broken > 1)} left out")
    return rows


def read_memories(
    run: RunRecord, folder: Path, read_checkpoint: Callable[[], Any], states: Callable[[Any], dict[str, Any]]
) -> Any:
    """Read what was recorded of the memories, the checkpoint, and the memories in it.

    Args:
        run: of the report.
        folder: of the run.
        read_checkpoint: the host's; it raises where there is none.
        states: of a checkpoint, each memory's saved bank by its kind.

    Returns:
        The checkpoint, None where it cannot be read.
    """
    with run.part("what was recorded while training (diagnostics.jsonl)"):
        run.diagnostics = read_lines(run, folder / "diagnostics.jsonl", "step")
    with run.part("checkpoint"):
        checkpoint = read_checkpoint()
        run.memories = [read_bank(kind, state) for kind, state in states(checkpoint).items()]
        return checkpoint
    return None


def read_bank(kind: str, state: dict[str, Tensor]) -> SavedMemory:
    """The memory in the saved state of a :class:`mbj_plugin.MemoryBank`.

    Raises:
        ValueError: where a tensor is missing.
    """
    try:
        rows, labels, calls, now = (state[key] for key in ("slot_rows", "slot_labels", "slot_calls", "calls"))
    except KeyError as error:
        raise ValueError(f"the checkpoint holds no {error.args[0]} of the {kind} memory") from error
    filled = labels[:-1] >= 0  # the last slot is the one for what is not stored
    kept = [tensor[filled].cpu().numpy() for tensor in (rows[:-1], labels[:-1], now - calls[:-1])]
    return SavedMemory(kind, len(filled), *kept)


def first_of_each(labels: np.ndarray, classes: np.ndarray, count: int) -> np.ndarray:
    """Indices of the first ``count`` images of each of the classes."""
    of_classes = images_of_classes(labels, int(max(labels.max(initial=-1), classes.max(initial=-1))) + 1)
    return np.sort(np.concatenate([of_classes[c][:count] for c in classes]))


def short_names(folders: list[Path]) -> list[str]:
    """A name for each folder: the part of its path that tells it from the others."""
    paths = [folder.resolve().parts for folder in folders]
    if len(set(paths)) < 2:
        return [parts[-1] for parts in paths]
    first = last = 0
    while all(len(p) > first + 1 and p[first] == paths[0][first] for p in paths):
        first += 1
    while all(len(p) - last > first + 1 and p[-1 - last] == paths[0][-1 - last] for p in paths):
        last += 1
    return ["/".join(parts[first : len(parts) - last]) for parts in paths]
