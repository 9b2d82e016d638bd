"""How all figures look: told apart by colour-blind readers and in black and white, small enough for a phone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatter, LogLocator, NullFormatter

# Okabe and Ito's palette without its yellow, which is too light on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 3)))
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "ooo", "+++", "---")
LONGEST = 32  # letters of a name in a figure
GROUPS = ("head", "medium", "tail")
# Groups and runs are both in some figures' neighbourhood, so groups have colours that the first runs have not.
GROUP_COLOURS = {"head": "#E69F00", "medium": "#56B4E9", "tail": "#CC79A7"}
GROUP_HATCHES = {"head": "xxx", "medium": "", "tail": "..."}

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
def drawing(path: Path, width: float = 4.8, height: float = 3.4) -> Iterator[Figure]:
    """A figure of so many inches that is written to ``path`` at the end: 960 pixels wide unless told otherwise.

    Text of 10 points on 4.8 inches can still be read where the page shows the figure 340 pixels wide.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        figure.savefig(path, dpi=200, metadata={"Software": None})


@contextmanager
def plot(path: Path, title: str, y: str) -> Iterator[Any]:
    """Axes of a figure of their own, with its title, the name of its y axis and, below, the legend."""
    with drawing(path) as figure:
        axis = figure.subplots()
        axis.set_title(title)
        axis.set_ylabel(y)
        yield axis
        legend_below(figure, axis)


def shown(name: str) -> str:
    """A user's name as a label: matplotlib leaves those that begin with ``_`` out of legends, and a long one leaves no
    room for the axes."""
    short = name if len(name) <= LONGEST else f"{name[: LONGEST // 2]}…{name[-LONGEST // 2 + 1 :]}"
    return f" {short}" if short.startswith("_") else short


def draw_bars(axis: Any, heights: dict[str, list[float]]) -> None:
    """Groups of bars, one bar per name in each group, with the height above where there is room; NaN is left out."""
    width = 0.8 / len(heights)
    for index, (name, values) in enumerate(heights.items()):
        places = [place + (index - (len(heights) - 1) / 2) * width for place in range(len(values))]
        look: Any = {"color": COLOURS[index], "hatch": HATCHES[index], "edgecolor": "white"}
        axis.bar(places, values, width, label=shown(name), **look)
        for place, value in zip(places, values, strict=True):
            if math.isfinite(value) and len(heights) <= 4:
                axis.annotate(f"{value:.1f}", (place, value), ha="center", va="bottom", fontsize=8)
    axis.grid(False, axis="x")
    axis.margins(y=0.12)


def legend_below(figure: Any, axis: Any) -> None:
    """The legend of ``axis`` under the axes, where it hides nothing; none for a single unnamed thing."""
    handles, labels = axis.get_legend_handles_labels()
    if labels:
        columns = 1 if max(map(len, labels)) > 24 else 3 if len(labels) == 3 and sum(map(len, labels)) < 36 else 2
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def size_axis(axis: Any) -> None:
    """A logarithmic x axis of class sizes, ticks as plain numbers."""
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("training images of the class")


def log_axis(axis: Any) -> None:
    """A logarithmic y axis. matplotlib's own tick labels are formulas, which :data:`STYLE` turns off."""
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(LogFormatter())
    axis.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1, 0.4)))


def rank_axis(axis: Any, sizes: Any) -> None:
    """An x axis of classes by rank, 1 the largest; the ticks of a few classes are their (C,) sizes."""
    if len(sizes) <= 12:
        axis.set_xticks(
            range(1, len(sizes) + 1), [f"{size:,}" for size in sizes], rotation=45 if max(sizes) > 999 else 0
        )
        axis.set_xlabel("classes, by training images")
    else:
        axis.set_xlabel(f"class by size: 1 has {sizes[0]:,} training images, {len(sizes)} has {sizes[-1]:,}")
