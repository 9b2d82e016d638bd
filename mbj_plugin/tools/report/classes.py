"""Which classes gain: error by group and by class size, and where the wrong answers of the tail go."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix

from mbj_plugin.longtail import GROUPS, class_groups
from mbj_plugin.tools.report.page import Section, Table
from mbj_plugin.tools.report.run import RunRecord, Scores, side_by_side
from mbj_plugin.tools.report.style import (
    COLOURS,
    GREYS,
    GROUP_HATCHES,
    HATCHES,
    MARKERS,
    class_labels,
    draw_bars,
    log_axis,
    picture,
    plot,
    rank_axis,
    shown,
)

MATRIX_CLASSES = 100  # larger matrices cannot be read


def class_section(runs: list[RunRecord]) -> Section:
    """Error of each group and of each class against its size."""
    section = Section("Error by class group and by class size")
    compared = [(name, run, scores) for name, run, scores in side_by_side(runs) if run.class_counts is not None]
    if not compared:
        return section
    counts = np.asarray(compared[0][1].class_counts)
    groups = class_groups(counts)
    caption = (
        "Test error of each group. A method for the long tail lowers the tail's bars more than it raises the head's."
    )
    with plot(section, "errors-by-group", "Error by class group", "error, %", caption) as axis:
        draw_bars(axis, {shown(name): [scores.errors.get(g, np.nan) for g in GROUPS] for name, _, scores in compared})
        labels = [f"{g}\n{len(groups[g])} classes\n{counts[groups[g]].sum():,} images" for g in GROUPS]
        axis.set_xticks(range(len(GROUPS)), labels)
    caption = "One mark for each class. A good classifier's marks stay low to the left, where classes are small."
    with plot(section, "error-by-class-size", "Error by class size", "error, %", caption) as axis:
        for index, (name, run, scores) in enumerate(compared):
            sizes = np.asarray(run.class_counts)
            shift = 1 + 0.03 * (index - (len(compared) - 1) / 2)
            look: Any = {"color": COLOURS[index], "alpha": 0.8 if len(sizes) < 50 else 0.4}
            axis.plot(sizes * shift, scores.by_class, MARKERS[index], label=shown(name),
                      mfc="none" if index % 2 else None, **look)  # fmt: skip
        log_axis(axis, "x")
        axis.set_xlabel("training images of the class")
    for index, (name, run, scores) in enumerate(compared[1:], 1):
        if np.array_equal(np.asarray(run.class_counts), counts):
            _draw_change(section, index, name, compared[0][0], run, scores.by_class - compared[0][2].by_class)
    section.tables.append(_class_table(compared))
    return section


def _draw_change(section: Section, index: int, name: str, first: str, run: RunRecord, change: np.ndarray) -> None:
    """Bars of the (C,) change of each class's error, in points; classes from the largest to the smallest."""
    order = np.argsort(-np.asarray(run.class_counts), kind="stable")
    ranks, values = np.arange(1, len(order) + 1), change[order]
    caption = f"From {first} to {name}: of {len(order)} classes better (bars down): {int((change < 0).sum())}, worse "
    caption += f"(up): {int((change > 0).sum())}. Look at the right end, where the smallest classes are."
    title = f"{shown(name)} − {shown(first)}"
    with plot(section, f"change-{index}", title, "change of error, points", caption) as axis:
        if len(order) <= 60:
            axis.bar(ranks, values, color=COLOURS[index], hatch=HATCHES[index], edgecolor="white")
        else:  # white edges would hide bars this thin
            axis.vlines(ranks, 0, values, color=COLOURS[index], lw=max(0.3, 200 / len(order)))
        axis.axhline(0, color="black", lw=0.8)
        axis.grid(False, axis="x")
        rank_axis(axis, run, order)


def _class_table(compared: list[tuple[str, RunRecord, Scores]]) -> Table:
    """A line for each class, the largest first; the number is what figures show where a name has other letters."""
    run = compared[0][1]
    counts = np.asarray(run.class_counts)
    images = ["–"] * len(counts) if run.truth is None else np.bincount(run.truth, minlength=len(counts)).tolist()
    rows = []
    for c in np.argsort(-counts, kind="stable"):
        errors = [scores.by_class[c] if c < len(scores.by_class) else np.nan for _, _, scores in compared]
        cells = [f"{error:.1f}" if np.isfinite(error) else "–" for error in errors]
        rows.append([run.class_name(int(c)), str(c), f"{counts[c]:,}", str(images[c]), *cells])
    header = ["class", "number", "training images", "test images", *(f"{name}, %" for name, _, _ in compared)]
    return Table(header, rows, "Error of each class", folded=True)


def confusion_section(runs: list[RunRecord]) -> Section:
    """Tail into head: what the wrong answers name."""
    section = Section("Confusion of tail into head")
    compared = [(n, r, s) for n, r, s in side_by_side(runs) if s.answers is not None and r.class_counts is not None]
    if not compared:
        return section
    answers = {name: answers_by_group(r.truth, s.answers, r.class_counts) for name, r, s in compared}  # type: ignore[arg-type]
    said = "; ".join(f"{name} {of['tail']['head']:.1f} %" for name, of in answers.items() if "tail" in of)
    caption = f"Of the tail's test images are taken for a head class: {said}. White is right; look how much of the "
    caption += "tail's bars is cross-hatched."
    with plot(section, "confusion-groups", "Answers by true group", "", caption) as axis:
        _draw_answers(axis, answers)
    for index, (name, run, scores) in enumerate(compared):
        if len(run.class_counts) <= MATRIX_CLASSES:  # type: ignore[arg-type]
            _draw_matrix(section, f"confusion-{index}", name, run, scores.answers)
    return section


def answers_by_group(truth: np.ndarray, answers: np.ndarray, class_counts: np.ndarray) -> dict[str, dict[str, float]]:
    """For each group with test images where its (N,) answers go, in percent: "right", and for wrong ones the group of
    the class that is named."""
    group_of = np.empty(len(class_counts), dtype=np.int64)
    for number, name in enumerate(GROUPS):
        group_of[class_groups(class_counts)[name]] = number
    named = np.where(answers == truth, len(GROUPS), group_of[answers])
    table = confusion_matrix(group_of[truth], named, labels=range(len(GROUPS) + 1))[:-1]
    kinds = (*GROUPS, "right")
    return {
        name: dict(zip(kinds, 100 * row / row.sum(), strict=True))
        for name, row in zip(GROUPS, table, strict=True)
        if row.sum()
    }


def _draw_answers(axis: Any, answers: dict[str, dict[str, dict[str, float]]]) -> None:
    """Stacked bars: for each true group and classifier, right, and wrong by the group of the answer; in percent."""
    stacked = [(g, name, of[g]) for g in GROUPS for name, of in answers.items() if g in of]
    places = [index + 0.5 * GROUPS.index(group) for index, (group, _, _) in enumerate(stacked)]
    left = np.zeros(len(places))
    for kind in ("right", "tail", "medium", "head"):
        widths = np.array([of[kind] for _, _, of in stacked])
        label = kind if kind == "right" else f"taken for {kind}"
        look: Any = {"color": GREYS[kind], "hatch": GROUP_HATCHES[kind], "edgecolor": "#555555"}
        axis.barh(places, widths, 0.8, left, label=label, **look)
        left += widths
    labels = [f"{group}: {shown(name)}" if len(answers) > 1 else group for group, name, _ in stacked]
    axis.set_yticks(places, labels, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("share of the group's images, %")
    axis.grid(False, axis="y")


def _draw_matrix(section: Section, file: str, name: str, run: RunRecord, answers: Any) -> None:
    """The confusion matrix in percent of each row, classes by size; numbers where they can be read.

    A class without test images has an empty row.
    """
    order = np.argsort(-np.asarray(run.class_counts), kind="stable")
    matrix = confusion_matrix(run.truth, answers, labels=order)
    with np.errstate(invalid="ignore"):
        share = 100 * matrix / matrix.sum(1, keepdims=True)
    few = len(order) <= 12
    caption = f"{name}: each row is a true class, the largest on top, and sums to 100 %. Below the diagonal are small "
    caption += "classes that are taken for larger ones."
    with picture(section, file, f"Confusion matrix of {name}", caption, 4.8, 4.6) as figure:
        axis = figure.subplots()
        display = ConfusionMatrixDisplay(np.round(share), display_labels=class_labels(run, order) if few else None)
        display.plot(ax=axis, cmap="Greys", include_values=few, colorbar=not few, values_format=".0f",
                     xticks_rotation="vertical", im_kw={"vmin": 0, "vmax": 100}, text_kw={"fontsize": 8})  # fmt: skip
        axis.grid(False)
        axis.set(title=f"{shown(name)}: % of the true class", xlabel="answer", ylabel="true class")
