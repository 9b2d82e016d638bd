"""What a run left, in plain arrays: hosts fill it in, the report draws it. Everything may be missing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mbj_plugin.checks import is_number
from mbj_plugin.command_line import reason
from mbj_plugin.memory import MemoryBank
from mbj_plugin.tools.files import read_jsonl
from mbj_plugin.tools.report.search import Query

Curve = tuple[list[float], list[float]]


@dataclass
class Scores:
    """One classifier on the test images.

    ``errors`` are those of :func:`mbj_plugin.tools.group_errors.group_errors`; ``by_class`` (C,) percent, NaN for a
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
    that the user chose at the start. ``retrieval`` maps a score, "mAP" say, to percent, and ``retrieval_by_size``
    "tail mAP" and its kin, of identities that were trained on. ``curves`` maps the name of a figure to its lines, ""
    for the run's own and a name for one of its classifiers, each (x, y) lists, x in ``curve_unit``s; ``diagnostics``
    are rows of what the run recorded of its memories, each with its ``curve_unit``; ``searches`` maps a test set to its
    queries; ``missing`` says in one line each what could not be read.
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
    retrieval_by_size: dict[str, float] = field(default_factory=dict)
    curves: dict[str, dict[str, Curve]] = field(default_factory=dict)
    diagnostics: list[dict[str, Any]] = field(default_factory=list)
    memories: dict[str, MemoryBank] = field(default_factory=dict)
    searches: dict[str, list[Query]] = field(default_factory=dict)
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

    def read_lines(self, path: Path, key: str) -> list[dict[str, Any]]:
        """Rows of a file of JSON objects by ``key``; says how many lines are broken."""
        rows, broken = read_jsonl(path, key)
        if broken:
            self.missing.append(f"{path.name}: {broken} broken line{'s' * (broken > 1)} left out")
        return rows


def side_by_side(runs: list[RunRecord]) -> list[tuple[str, RunRecord, Scores]]:
    """What figures compare: the classifiers of one run, or of several runs the one that each was trained for."""
    if len(runs) == 1:
        return [(scores.name, runs[0], scores) for scores in runs[0].classifiers.values()]
    return [(run.name, run, run.classifiers[run.chosen]) for run in runs if run.chosen in run.classifiers]


def colour_of(runs: list[RunRecord], number: int) -> int:
    """Which colour a run has; a run that is shown alone has that of the classifier that it was trained for."""
    return list(runs[0].classifiers).index(runs[0].chosen) if len(runs) == 1 and runs[0].classifiers else number


def series(rows: list[dict[str, Any]], x: str, y: str) -> Curve:
    """The points of ``y`` over ``x`` in rows that have both as finite numbers."""
    pairs: list[tuple[Any, Any]] = [(row.get(x), row.get(y)) for row in rows]
    points = [pair for pair in pairs if all(is_number(v) and math.isfinite(v) for v in pair)]
    return [float(a) for a, _ in points], [float(b) for _, b in points]


def read_bank(state: dict[str, Tensor]) -> MemoryBank:
    """The memory of a saved state."""
    rows = state["slot_rows"]  # the last one is the slot for what is not stored
    bank = MemoryBank(len(rows) - 1, rows.shape[1])
    bank.load_state_dict(state)
    return bank
