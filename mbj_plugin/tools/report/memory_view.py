"""What the memory held at the end, how old it was, and how it filled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from mbj_plugin.diagnostics.jitter import class_angular_variance
from mbj_plugin.longtail import class_groups
from mbj_plugin.tools.report.curves import draw_curves, group_lines
from mbj_plugin.tools.report.page import Figure, Section, Table
from mbj_plugin.tools.report.run import Memory, Run
from mbj_plugin.tools.report.style import (
    COLOURS,
    GROUP_COLOURS,
    GROUP_HATCHES,
    GROUPS,
    MARKERS,
    plot,
    rank_axis,
    shown,
    size_axis,
)


def memory_section(runs: list[Run], folder: Path) -> Section | None:
    """Rows by class and by age in the last checkpoint; entries and age over iterations, where they were recorded."""
    section = Section(
        "What the memory held",
        "Rows in the memory of the checkpoint. Age is in iterations since a row came in. The spread of a class's rows "
        "is their angular variance: for features it holds the variety of the images as well as the jitter, for "
        "prototypes the jitter alone.",
    )
    rows = []
    for number, run in enumerate(runs):
        for memory in run.memories:
            stem, name = f"memory-{number}-{memory.kind}", f"{run.name}, {memory.kind} memory"
            rows += _table_rows(run, memory)
            if not len(memory.labels):
                section.gaps.append(f"{name}: it is empty")
                continue
            if run.class_counts is None:
                section.gaps.append(f"{name}: the class sizes are not known, so its rows are not shown by class")
                continue
            for draw, what, said in (
                (draw_rows, "by-class", "Rows of each class, classes from the largest to the smallest"),
                (draw_ages, "ages", "How old the rows are, by group"),
                (draw_spread, "spread", "Spread of each class's rows against the size of the class"),
            ):
                path = folder / f"{stem}-{what}.png"
                draw(run, memory, path)
                section.figures.append(
                    Figure(path, f"{said}. {name}.", f"{said}: {name}, {len(memory.labels):,} rows.")
                )
        for kind in ("feature", "prototype"):
            for quantity, label in (("entries", "rows"), ("age", "mean age, iterations")):
                if lines := group_lines(run, f"mbj/{kind}/{quantity}"):
                    path = folder / f"memory-{number}-{kind}-{quantity}-over-time.png"
                    title = f"{run.name}: {kind} memory"
                    draw_curves(lines, title, "iteration", label, path)
                    text = f"{label.capitalize()} by group over iterations: {title}."
                    section.figures.append(Figure(path, text, text))
    if rows:
        header = ["memory", "group", "rows", "mean age", "spread, rad²"]
        section.tables.append(Table(header, rows, "The memory in the checkpoint, by class group."))
    return section if section.tables or section.figures or section.gaps else None


def spread_of_classes(memory: Memory, num_classes: int) -> np.ndarray:
    """(C,) angular variance of the rows of each class, rad^2; NaN with fewer than two rows."""
    rows, labels = torch.from_numpy(np.asarray(memory.rows)), torch.from_numpy(np.asarray(memory.labels))
    return class_angular_variance(rows, labels, num_classes).numpy()


def _table_rows(run: Run, memory: Memory) -> list[list[str]]:
    name = f"{run.name}, {memory.kind}: {len(memory.labels):,} of {memory.size:,} slots"
    name += f", {len(np.unique(memory.labels)):,} classes"
    if run.class_counts is None or not len(memory.labels):
        return [[name] + ["–"] * 4]
    groups = class_groups(run.class_counts)
    rows: list[list[str]] = []
    spread = spread_of_classes(memory, len(run.class_counts))
    for group in GROUPS:
        ages = memory.ages[np.isin(memory.labels, groups[group])]
        of_group = spread[groups[group]]
        known = of_group[np.isfinite(of_group)]
        age = f"{ages.mean():.0f}" if len(ages) else "–"
        angle = f"{known.mean():.3g}" if len(known) else "–"
        rows.append(["" if rows else name, group, f"{len(ages):,}", age, angle])
    return rows


def draw_rows(run: Run, memory: Memory, path: Path) -> None:
    """Rows of each class beside its training images, both as shares."""
    counts = np.asarray(run.class_counts)
    order = np.argsort(-counts, kind="stable")
    held = np.bincount(memory.labels, minlength=len(counts))[order]
    ranks = np.arange(1, len(order) + 1)
    with plot(path, f"{shown(run.name)}: {memory.kind} memory", "share, %") as axis:
        if len(order) <= 40:
            axis.bar(
                ranks, 100 * held / held.sum(), 0.8, color=COLOURS[1], hatch="///", edgecolor="white", label="memory"
            )
        else:
            axis.step(ranks, 100 * held / held.sum(), where="mid", color=COLOURS[1], lw=0.9, label="memory")
        axis.plot(ranks, 100 * counts[order] / counts.sum(), color="black", lw=1.4,
                  marker="o" if len(order) <= 40 else None, label="training images")  # fmt: skip
        axis.grid(False, axis="x")
        rank_axis(axis, counts[order])


def draw_ages(run: Run, memory: Memory, path: Path) -> None:
    """Histogram of the rows' ages, stacked by group."""
    groups = class_groups(run.class_counts)  # type: ignore[arg-type]
    ages = [memory.ages[np.isin(memory.labels, groups[group])] for group in GROUPS]
    width = int(memory.ages.max()) // 20 + 1  # whole iterations, so that every bar holds as many of them
    bins = np.arange(0, memory.ages.max() + width + 1, width)
    with plot(path, f"{shown(run.name)}: age in the {memory.kind} memory", "rows") as axis:
        bottom = np.zeros(len(bins) - 1)
        for group, values in zip(GROUPS, ages, strict=True):
            held, _ = np.histogram(values, bins)
            look: dict[str, Any] = {"color": GROUP_COLOURS[group], "hatch": GROUP_HATCHES[group], "edgecolor": "white"}
            label = f"{group} ({len(values):,} rows)"
            axis.bar(bins[:-1], held, np.diff(bins), bottom, align="edge", label=label, **look)
            bottom += held
        axis.set_xlabel("age, iterations")


def draw_spread(run: Run, memory: Memory, path: Path) -> None:
    """Angular variance of each class's rows against its training images, marked by group."""
    counts = np.asarray(run.class_counts)
    spread, groups = spread_of_classes(memory, len(counts)), class_groups(counts)
    with plot(path, f"{shown(run.name)}: {memory.kind} memory", "spread of its rows, rad²") as axis:
        for index, group in enumerate(GROUPS):
            classes = groups[group][np.isfinite(spread[groups[group]])]
            axis.plot(counts[classes], spread[classes], MARKERS[index], color=GROUP_COLOURS[group],
                      alpha=0.8 if len(counts) < 50 else 0.5, label=f"{group} ({len(classes)} classes)")  # fmt: skip
        size_axis(axis)
