"""Figures of the results page: error bars by group, and the groups' errors over the epochs."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from benchmarks.svg import save_svg, svg_style
from benchmarks.tables import Table

GROUPS = ("error", "head", "medium", "tail")


@svg_style
def draw_errors(table: Table, title: str, path: Path) -> None:
    """One panel per group, one bar per method: mean over seeds, standard deviation, and the seeds themselves."""
    methods = list(table)
    figure = Figure(figsize=(9, 0.8 + 0.22 * len(methods)), layout="constrained")
    axes = figure.subplots(1, 4, sharey=True)
    for axis, group in zip(axes, GROUPS, strict=True):
        for position, method in enumerate(methods):
            values = [row[group] for row in table[method].values()]
            axis.barh(position, statistics.mean(values), color=_colour(methods, method), alpha=0.7)
            axis.plot(values, [position] * len(values), "k|", markersize=4, markeredgewidth=0.6)
            if len(values) > 1:
                axis.errorbar(statistics.mean(values), position, xerr=statistics.stdev(values), color="k", lw=0.8)
        axis.set_title(f"{group} error, %" if group != "error" else "error, %")
        axis.set_yticks(range(len(methods)), methods)
    axes[0].invert_yaxis()
    figure.suptitle(title)
    save_svg(figure, path)


@svg_style
def draw_curves(table: Table, title: str, path: Path) -> None:
    """One panel per group, one line per method: mean over the seeds, with a band of one standard deviation.

    Of the methods with the most seeds only: a line of one seed says little beside a mean.
    """
    most = max(len(runs) for runs in table.values())
    methods = [method for method, runs in table.items() if len(runs) == most]
    figure = Figure(figsize=(9, 2.8 + 0.12 * len(methods) / 4), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, group in zip(axes, GROUPS[1:], strict=True):
        for method in methods:
            curves = [{point["epoch"]: point[group] for point in row["curve"]} for row in table[method].values()]
            epochs = sorted(set.intersection(*(set(curve) for curve in curves)))
            values = [[curve[epoch] for curve in curves] for epoch in epochs]
            means = [statistics.mean(v) for v in values]
            colour = _colour(methods, method)
            axis.plot(epochs, means, label=method, color=colour, lw=1)
            if len(curves) > 1:
                deviations = [statistics.stdev(v) for v in values]
                low, high = zip(*((m - s, m + s) for m, s in zip(means, deviations, strict=True)), strict=True)
                axis.fill_between(epochs, low, high, color=colour, alpha=0.12, lw=0)
        axis.set_title(f"{group} error, %")
        axis.set_xlabel("epoch")
    handles, labels = axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=6, loc="outside lower center", ncols=4)
    figure.suptitle(title)
    save_svg(figure, path)


def _colour(methods: list[str], method: str) -> Any:
    return matplotlib.colormaps["tab20"](methods.index(method) % 20)
