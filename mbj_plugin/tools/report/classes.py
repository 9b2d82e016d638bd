"""Which classes gain: error by group and by class size, and where the wrong answers of the tail go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mbj_plugin.diagnostics.groups import answers_by_group, confusion_matrix
from mbj_plugin.longtail import class_groups
from mbj_plugin.tools.report.page import Figure, Section, Table
from mbj_plugin.tools.report.run import Run
from mbj_plugin.tools.report.style import (
    COLOURS,
    GROUP_COLOURS,
    GROUP_HATCHES,
    GROUPS,
    MARKERS,
    draw_bars,
    drawing,
    plot,
    rank_axis,
    shown,
    size_axis,
)

SHOTS = ("many_shot", "medium_shot", "few_shot")
MATRIX_CLASSES = 100  # larger matrices cannot be read


def class_section(runs: list[Run], folder: Path) -> Section | None:
    """Error of each group and of each class against its size; None for runs that do not classify."""
    runs = [run for run in runs if run.errors and run.class_counts is not None]
    if not runs:
        return None
    section = Section(
        "Error by class group and by class size",
        "head / medium / tail are the first 20 %, the next 20 % and the last 60 % of the classes by rank; many / "
        "medium / few shot are classes of more than 100, 20 to 100 and fewer than 20 training images.",
        [_group_table(runs)],
    )
    for names, title in ((GROUPS, "head / medium / tail"), (SHOTS, "many / medium / few shot")):
        path = folder / f"errors-{'head' if names is GROUPS else 'many'}.png"
        draw_groups(runs, names, title, path)
        said = "; ".join(f"{run.name}: " + ", ".join(_error(run, name) for name in names) for run in runs)
        section.figures.append(Figure(path, f"Bars of the error by {title}. {said}.", f"Error in percent, {title}."))
    with_classes = [run for run in runs if run.class_errors is not None]
    if with_classes:
        path = folder / "error-by-class-size.png"
        draw_class_errors(with_classes, path)
        section.figures.append(
            Figure(path, "Error of each class against its number of training images, one mark per class and run.",
                   "One mark per class. Classes of one size are drawn a little apart.")
        )  # fmt: skip
    section.figures += _change_figures(with_classes, folder)
    return section


def _error(run: Run, name: str) -> str:
    return (
        f"{name.replace('_', ' ')} {run.errors[name]:.1f} %" if name in run.errors else f"no {name.replace('_', ' ')}"
    )


def _group_table(runs: list[Run]) -> Table:
    header, rows = ["error, %"] + [run.name for run in runs], []
    if len(runs) > 1:
        header += [f"{run.name} − {runs[0].name}" for run in runs[1:]]
    for key in ("error", *GROUPS, *SHOTS):
        values = [run.errors.get(key) for run in runs]
        if all(value is None for value in values):
            continue
        cells = ["–" if value is None else f"{value:.2f}" for value in values]
        if len(runs) > 1:
            first = values[0]
            cells += ["–" if v is None or first is None else f"{v - first:+.2f}".replace("-", "−") for v in values[1:]]
        rows.append(["all" if key == "error" else key.replace("_", " "), *cells])
    return Table(header, rows, "Test error in percent; lower is better.")


def draw_groups(runs: list[Run], names: tuple[str, ...], title: str, path: Path) -> None:
    """Bars of the error of each group, one per run, with the number of classes and training images below."""
    counts: Any = np.asarray(runs[0].class_counts)
    groups = class_groups(counts)
    with plot(path, f"Error by {title}", "error, %") as axis:
        draw_bars(axis, {run.name: [run.errors.get(name, np.nan) for name in names] for run in runs})
        labels = []
        for name in names:
            classes, images = groups[name], int(counts[groups[name]].sum())
            words = f"{len(classes)} class{'es' * (len(classes) != 1)}\n{images:,} image{'s' * (images != 1)}"
            labels.append(f"{name.removesuffix('_shot')}\n{words}")
        axis.set_xticks(range(len(names)), labels)


def draw_class_errors(runs: list[Run], path: Path) -> None:
    """Error of each class against its number of training images."""
    with plot(path, f"Error by class size, {len(np.asarray(runs[0].class_counts))} classes", "error, %") as axis:
        for index, run in enumerate(runs):
            counts, errors = np.asarray(run.class_counts), np.asarray(run.class_errors)
            known = counts > 0
            # A little apart, so that the marks of several runs and of classes of one size do not hide each other.
            shift = 1 + 0.03 * (index - (len(runs) - 1) / 2)
            axis.plot(
                counts[known] * shift,
                errors[known],
                MARKERS[index],
                color=COLOURS[index],
                label=shown(run.name),
                alpha=0.8 if len(counts) < 50 else 0.4,
                mfc="none" if index % 2 else None,
            )
        size_axis(axis)


def _change_figures(runs: list[Run], folder: Path) -> list[Figure]:
    """Who gains, from the first run to each other of the same classes and sizes."""
    figures = []
    for number, run in enumerate(runs[1:], 1):
        first = runs[0]
        if not np.array_equal(np.asarray(first.class_counts), np.asarray(run.class_counts)):
            continue
        change = np.asarray(run.class_errors) - np.asarray(first.class_errors)
        path = folder / f"change-{number}.png"
        draw_change(change, np.asarray(run.class_counts), f"{shown(run.name)} − {shown(first.name)}", path)
        text = f"Which classes gain, from {first.name} to {run.name}: {int((change < 0).sum())} are better, "
        text += f"{int((change > 0).sum())} are worse. Below zero is better."
        figures.append(Figure(path, text, text))
    return figures


def draw_change(change: np.ndarray, counts: np.ndarray, title: str, path: Path) -> None:
    """Bars of the (C,) change of each class's error, in points; classes from the largest to the smallest."""
    order = np.argsort(-counts, kind="stable")
    change, ranks = change[order], np.arange(1, len(order) + 1)
    with plot(path, title, "change of error, points") as axis:
        for mask, colour, hatch, label in (
            (change <= 0, COLOURS[0], "", "better"),
            (change > 0, COLOURS[1], "///", "worse"),
        ):
            if len(order) <= 60:
                axis.bar(ranks[mask], change[mask], color=colour, hatch=hatch, edgecolor="white", label=label)
            else:  # up or down tells them apart; white edges would hide bars this thin
                axis.vlines(ranks[mask], 0, change[mask], color=colour, lw=max(0.3, 200 / len(order)), label=label)
        axis.axhline(0, color="black", lw=0.8)
        axis.grid(False, axis="x")
        rank_axis(axis, counts[order])


def confusion_section(runs: list[Run], folder: Path) -> Section | None:
    """Tail into head: what the wrong answers name."""
    with_answers = [run for run in runs if run.truth is not None and run.class_counts is not None]
    if not with_answers:
        return None
    section = Section(
        "Confusion of tail into head",
        "Each test image of a group is right, or is taken for a class of the head, of the medium or of the tail.",
    )
    path = folder / "confusion-groups.png"
    answers = {run.name: answers_by_group(run.truth, run.predicted, run.class_counts) for run in with_answers}  # type: ignore[arg-type]
    draw_answers(answers, path)
    said = "; ".join(
        f"{name}: {of['tail']['head']:.1f} % of the tail's images are taken for a head class"
        for name, of in answers.items()
        if "tail" in of
    )
    images = len(with_answers[0].truth)  # type: ignore[arg-type]
    section.figures.append(
        Figure(path, f"Stacked bars of the answers by true group. {said}.", f"{said}. {images:,} test images.")
    )
    for number, run in enumerate(with_answers):
        if len(run.class_counts) > MATRIX_CLASSES:  # type: ignore[arg-type]
            continue
        path = folder / f"confusion-{number}.png"
        draw_matrix(run, path)
        section.figures.append(
            Figure(path, f"Confusion matrix of {run.name}, classes sorted by size.",
                   f"{run.name}: classes from the largest (top, left) to the smallest; each row sums to 100 %.")
        )  # fmt: skip
        section.tables.append(_worst_pairs(run))
    section.tables = [table for table in section.tables if table.rows]
    return section


def draw_answers(answers: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """Stacked bars: for each true group and run, right, and wrong by the group of the answer; in percent."""
    with plot(path, "Answers by true group", "share of the group's test images, %") as axis:
        places: list[float] = []
        labels: list[str] = []
        for group in GROUPS:
            for name, of in answers.items():
                if group in of:
                    places.append(len(places) + 0.5 * GROUPS.index(group))
                    labels.append(f"{group}\n{shown(name)}" if len(answers) > 1 else group)
        stacked = [of[group] for group in GROUPS for of in answers.values() if group in of]
        bottom = np.zeros(len(places))
        for kind in ("right", "tail", "medium", "head"):
            heights = np.array([of[kind] for of in stacked])
            colour, hatch = GROUP_COLOURS.get(kind, "#DDDDDD"), GROUP_HATCHES.get(kind, "")
            label = kind if kind == "right" else f"taken for {kind}"
            axis.bar(places, heights, 0.8, bottom, color=colour, hatch=hatch, edgecolor="white", label=label)
            bottom += heights
        flat = len(labels) <= 6 and max(map(len, labels)) < 18
        axis.set_xticks(
            places, labels, rotation=0 if flat else 60, ha="center" if flat else "right", fontsize=9 if flat else 8
        )
        axis.grid(False, axis="x")


def draw_matrix(run: Run, path: Path) -> None:
    """The confusion matrix in percent of each row, classes by size; numbers where they can be read."""
    counts: Any = np.asarray(run.class_counts)
    order = np.argsort(-counts, kind="stable")
    matrix = _confusion(run)[np.ix_(order, order)]
    share = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    few = len(order) <= 12
    with drawing(path, 4.8, 4.6) as figure:
        axis = figure.subplots()
        image = axis.imshow(share, cmap="Greys", vmin=0, vmax=100)
        axis.grid(False)
        axis.set_xlabel("answer")
        axis.set_ylabel("true class (training images)" if few else "true class, by size")
        axis.set_title(f"{shown(run.name)}: % of the true class")
        if not few:
            figure.colorbar(image, ax=axis, shrink=0.8)
            return
        for (y, x), value in np.ndenumerate(share):
            if value >= 0.5:
                colour = "white" if value > 50 else "black"
                axis.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=8, color=colour)
        names = [shown(run.class_name(int(c))) for c in order]
        axis.set_xticks(range(len(order)), names, rotation=90, fontsize=8)
        sized = [f"{name} ({counts[c]:,})" for name, c in zip(names, order, strict=True)]
        axis.set_yticks(range(len(order)), sized, fontsize=8)


def _confusion(run: Run) -> np.ndarray:
    assert run.truth is not None and run.predicted is not None and run.class_counts is not None
    return confusion_matrix(run.truth, run.predicted, len(run.class_counts))


def _worst_pairs(run: Run, most: int = 5) -> Table:
    """The most frequent confusions, in images."""
    counts: Any = np.asarray(run.class_counts)
    matrix = _confusion(run)
    images = matrix.sum(1)
    np.fill_diagonal(matrix, 0)
    rows = []
    for flat in np.argsort(-matrix, axis=None, kind="stable")[:most]:
        true, answer = (int(i) for i in np.unravel_index(flat, matrix.shape))
        if matrix[true, answer]:
            pair = f"{run.class_name(true)} taken for {run.class_name(answer)}"
            rows.append([pair, f"{matrix[true, answer]} of {images[true]}", f"{counts[true]:,}", f"{counts[answer]:,}"])
    header = ["confusion", "test images", "training images of the true class", "of the answer"]
    return Table(header, rows, f"The most frequent confusions of {run.name}", folded=True)
