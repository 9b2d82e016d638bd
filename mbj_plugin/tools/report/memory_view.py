"""What the memory held at the end: whose rows, how old, how far they spread."""

from __future__ import annotations

from typing import Any

import numpy as np

from mbj_plugin.diagnostics import memory_report
from mbj_plugin.longtail import GROUPS
from mbj_plugin.memory import MemoryBank
from mbj_plugin.tools.report.page import Section, Table
from mbj_plugin.tools.report.run import RunRecord, colour_of
from mbj_plugin.tools.report.style import COLOURS, HATCHES, plot, rank_axis, shown


def memory_section(runs: list[RunRecord]) -> Section:
    """Rows by class and by class group in the last checkpoint."""
    section = Section(
        "What the memory held",
        "Rows in the memory of the checkpoint. Age is in iterations since a row came in. Spread is the angular "
        "variance of a class's rows: for features it holds the variety of the images as well as the jitter.",
    )
    header, rows = ["memory", "group", "rows", "mean age", "spread, rad²"], []
    for number, run in enumerate(runs):
        for kind, bank in run.memories.items():
            name = f"{run.name}, {kind} memory"
            if run.class_counts is None or not bank.filled:
                why = "it is empty" if run.class_counts is not None else "the class sizes are not known"
                section.gaps.append(f"{name}: {why}")
                continue
            rows += _table_rows(name, memory_report(bank, run.class_counts))
            caption = f"{name}: bars are shares of its {int(bank.filled):,} rows, the line shares of the training "
            caption += "images. Bars above it to the right: the tail is remembered more often than it is seen."
            with plot(section, f"memory-{number}-{kind}", shown(name), "share, %", caption) as axis:
                _draw_rows(axis, run, bank, colour_of(runs, number))
    section.tables.append(Table(header, rows, "The memory in the checkpoint, by class group."))
    return section


def _table_rows(name: str, report: dict[str, float]) -> list[list[str]]:
    title = f"{name}: {100 * report['fill']:.0f} % of its slots, {100 * report['coverage']:.0f} % of the classes"
    kinds = {"entries": ",.0f", "age": ".0f", "jitter": ".3g"}
    numbers = [[format(report[f"{kind}_{group}"], how) for kind, how in kinds.items()] for group in GROUPS]
    rows = zip(GROUPS, numbers, strict=True)
    return [[title if group == "head" else "", group, *(n.replace("nan", "–") for n in cells)] for group, cells in rows]


def _draw_rows(axis: Any, run: RunRecord, bank: MemoryBank, colour: int) -> None:
    """Rows of each class beside its training images, both as shares."""
    counts = np.asarray(run.class_counts)
    order = np.argsort(-counts, kind="stable")
    held = np.bincount(bank.labels[bank.labels >= 0], minlength=len(counts))[order]
    held = 100 * held / held.sum()
    ranks, few = np.arange(1, len(order) + 1), len(order) <= 40
    if few:
        axis.bar(ranks, held, 0.8, color=COLOURS[colour], hatch=HATCHES[colour], edgecolor="white", label="memory")
    else:
        axis.step(ranks, held, where="mid", color=COLOURS[colour], lw=0.9, label="memory")
    share = 100 * counts[order] / counts.sum()
    axis.plot(ranks, share, color="black", lw=1.4, marker="o" if few else None, label="training images")
    axis.grid(False, axis="x")
    rank_axis(axis, run, order)
