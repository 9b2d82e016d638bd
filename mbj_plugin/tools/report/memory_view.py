"""What the memory held at the end, how old it was, and how it filled."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mbj_plugin.diagnostics.jitter import class_angular_variance
from mbj_plugin.longtail import class_groups
from mbj_plugin.tools.report.curves import group_lines
from mbj_plugin.tools.report.page import Section, Table
from mbj_plugin.tools.report.run import RunRecord, SavedMemory, colour_of
from mbj_plugin.tools.report.style import COLOURS, GROUPS, HATCHES, draw_lines, plot, rank_axis, shown


def memory_section(runs: list[RunRecord]) -> Section:
    """Rows by class in the last checkpoint; entries and age over iterations, where they were recorded."""
    section = Section("What the memory held")
    rows = []
    for number, run in enumerate(runs):
        for memory in run.memories:
            name = f"{run.name}, {memory.kind} memory"
            if run.class_counts is None or not len(memory.labels):
                why = "it is empty" if run.class_counts is not None else "the class sizes are not known"
                section.gaps.append(f"{name}: {why}")
                continue
            rows += _table_rows(run, memory)
            caption = f"{name}: bars are shares of its {len(memory.labels):,} rows, the line shares of the training "
            caption += "images. Bars above it to the right: the tail is remembered more often than it is seen."
            with plot(section, f"memory-{number}-{memory.kind}", shown(name), "share, %", caption) as axis:
                draw_rows(axis, run, memory, colour_of(runs, number))
        for kind in ("feature", "prototype"):
            for quantity, label in (("entries", "rows"), ("age", "mean age, iterations")):
                lines = group_lines(run, f"mbj/{kind}/{quantity}")
                if any(xs for xs, _ in lines.values()):
                    caption = f"{label.capitalize()} by group: {run.name}, {kind} memory."
                    file = f"memory-{number}-{kind}-{quantity}-over-time"
                    with plot(section, file, f"{shown(run.name)}: {kind} memory", label, caption) as axis:
                        draw_lines(axis, lines, "iteration")
    if rows:
        section.text = (
            "Rows in the memory of the checkpoint. Age is in iterations since a row came in. Spread is the angular "
            "variance of a class's rows: for features it holds the variety of the images as well as the jitter."
        )
        header = ["memory", "group", "rows", "mean age", "spread, rad²"]
        section.tables.append(Table(header, rows, "The memory in the checkpoint, by class group."))
    return section


def spread_of_classes(memory: SavedMemory, num_classes: int) -> np.ndarray:
    """(C,) angular variance of the rows of each class, rad^2; NaN with fewer than two rows."""
    rows, labels = torch.from_numpy(np.asarray(memory.rows)), torch.from_numpy(np.asarray(memory.labels))
    return class_angular_variance(rows, labels, num_classes).numpy()


def _table_rows(run: RunRecord, memory: SavedMemory) -> list[list[str]]:
    name = f"{run.name}, {memory.kind}: {len(memory.labels):,} of {memory.size:,} slots"
    name += f", {len(np.unique(memory.labels)):,} classes"
    groups = class_groups(run.class_counts)  # type: ignore[arg-type]
    spread = spread_of_classes(memory, len(run.class_counts))  # type: ignore[arg-type]
    rows: list[list[str]] = []
    for group in GROUPS:
        ages = memory.ages[np.isin(memory.labels, groups[group])]
        known = spread[groups[group]][np.isfinite(spread[groups[group]])]
        numbers = [
            f"{len(ages):,}",
            f"{ages.mean():.0f}" if len(ages) else "–",
            f"{known.mean():.3g}" if len(known) else "–",
        ]
        rows.append(["" if rows else name, group, *numbers])
    return rows


def draw_rows(axis: Any, run: RunRecord, memory: SavedMemory, colour: int) -> None:
    """Rows of each class beside its training images, both as shares."""
    counts = np.asarray(run.class_counts)
    order = np.argsort(-counts, kind="stable")
    held = 100 * np.bincount(memory.labels, minlength=len(counts))[order] / len(memory.labels)
    ranks, few = np.arange(1, len(order) + 1), len(order) <= 40
    if few:
        axis.bar(ranks, held, 0.8, color=COLOURS[colour], hatch=HATCHES[colour], edgecolor="white", label="memory")
    else:
        axis.step(ranks, held, where="mid", color=COLOURS[colour], lw=0.9, label="memory")
    share = 100 * counts[order] / counts.sum()
    axis.plot(ranks, share, color="black", lw=1.4, marker="o" if few else None, label="training images")
    axis.grid(False, axis="x")
    rank_axis(axis, [shown(run.class_name(int(c)), f"class {c}") for c in order], counts[order])
