"""How all figures look: one meaning for each colour, told apart without any, small enough for a phone.

A colour is a run, or a classifier of the one run that is shown. Class groups are greys with hatches, dashes and marks.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mbj_plugin.tools.report.page import Picture, Section
from mbj_plugin.tools.report.run import Curve, RunRecord

# Okabe and Ito's palette without its yellow, which is too light on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 3)))
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "ooo", "+++", "---")
LONGEST = 32  # letters of a name in a figure
GREYS = {"right": "#FFFFFF", "head": "#D0D0D0", "medium": "#8C8C8C", "tail": "#2B2B2B"}
GROUP_HATCHES = {"right": "", "head": "xxx", "medium": "", "tail": "..."}

STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.fontsize": 9,
    "legend.framealpha": 0.8,
    "hatch.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    # Names of runs and classes are the user's: a $ in them is no formula.
    "text.parse_math": False,
}


@contextmanager
def drawing(file: Path | io.BytesIO, width: float = 4.8, height: float = 3.4) -> Iterator[Figure]:
    """A figure of so many inches that is written at the end: 960 pixels wide unless told otherwise.

    Text of 10 points on 4.8 inches can still be read where the page shows the figure 340 pixels wide.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        figure.savefig(file, format="png", dpi=200, metadata={"Software": None})


@contextmanager
def picture(section: Section, name: str, title: str, caption: str, *size: float) -> Iterator[Figure]:
    """A figure of the section."""
    png = io.BytesIO()
    with drawing(png, *size) as figure:
        yield figure
    section.figures.append(Picture(re.sub(r"[^\w-]+", "-", name) + ".png", title, caption, png.getvalue()))


@contextmanager
def plot(section: Section, name: str, title: str, y: str, caption: str) -> Iterator[Any]:
    """Axes of a figure of their own, with its title, the name of its y axis and, below, the legend."""
    with picture(section, name, title, caption) as figure:
        axis = figure.subplots()
        axis.set_title(title)
        axis.set_ylabel(y)
        yield axis
        handles, labels = axis.get_legend_handles_labels()
        if labels:
            columns = 1 if max(map(len, labels)) > 24 else 3 if len(labels) == 3 and sum(map(len, labels)) < 36 else 2
            figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def shown(name: str, otherwise: str = "?") -> str:
    """A user's name as a label: shortened, and ``otherwise`` where the figures' font has not its letters.

    matplotlib leaves those that begin with ``_`` out of legends.
    """
    letters = get_font(findfont("DejaVu Sans")).get_charmap()
    if any(ord(letter) not in letters for letter in name):
        return otherwise
    short = name if len(name) <= LONGEST else f"{name[: LONGEST // 2]}…{name[-LONGEST // 2 + 1 :]}"
    return f" {short}" if short.startswith("_") else short


def draw_bars(axis: Any, heights: dict[str, list[float]]) -> None:
    """Groups of bars, one bar per name in each group, with the height above where there is room; NaN is left out."""
    width = 0.8 / len(heights)
    for index, (name, values) in enumerate(heights.items()):
        places = [place + (index - (len(heights) - 1) / 2) * width for place in range(len(values))]
        axis.bar(places, values, width, label=name, color=COLOURS[index], hatch=HATCHES[index], edgecolor="white")
        for place, value in zip(places, values, strict=True):
            if math.isfinite(value) and len(heights) <= 4:
                axis.annotate(f"{value:.1f}", (place, value), ha="center", va="bottom", fontsize=8)
    axis.grid(False, axis="x")
    axis.margins(y=0.12)


def draw_lines(axis: Any, lines: dict[str, Curve], x: str, log: bool = False, first: int = 0) -> None:
    """One line per name, from colour ``first`` on, told apart by colour (groups by grey), dash and marker."""
    for index, (name, (xs, ys)) in enumerate(lines.items(), first):
        if xs:
            every = max(len(xs) // 8, 1)
            look: Any = {"color": GREYS.get(name, COLOURS[index]), "ls": LINES[index], "marker": MARKERS[index]}
            axis.plot(
                xs, ys, markevery=(index * every // len(lines), every), mec="#444444", mew=0.5, label=name, **look
            )
    values = [value for _, ys in lines.values() for value in ys]
    if log and min(values) > 0 and max(values) > 10 * min(values):  # else a logarithmic axis has one tick or none
        log_axis(axis, "y")
    axis.set_xlabel(x)


def log_axis(axes: Any, which: str) -> None:
    """Make "x" or "y" logarithmic, with plain numbers at its ticks; matplotlib's own are formulas, or all the same."""
    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:.3g}"))
    axis.set_minor_formatter(NullFormatter())


def rank_axis(axis: Any, run: RunRecord, order: np.ndarray) -> None:
    """An x axis of the run's classes by rank, 1 the largest; the ticks of a few classes are their names."""
    if len(order) <= 12:
        axis.set_xticks(range(1, len(order) + 1), class_labels(run, order), rotation=45, ha="right", fontsize=8)
        axis.set_xlabel("classes, the largest first")
    else:
        sizes = np.asarray(run.class_counts)[order]
        axis.set_xlabel(f"classes by training images, from {sizes[0]:,} to {sizes[-1]:,}")


def class_labels(run: RunRecord, classes: np.ndarray) -> list[str]:
    """Names of classes as figures show them."""
    return [shown(run.class_name(int(c)), f"class {c}") for c in classes]
