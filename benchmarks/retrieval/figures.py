"""The figure of the retrieval section: what each method gains on the baseline, seed by seed."""

from __future__ import annotations

import statistics
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.svg import save_svg, svg_style
from benchmarks.tables import Table, comparable


@svg_style
def draw_gains(tables: dict[str, Table], title: str, path: Path) -> None:
    """One panel per edition: mAP of each method minus the baseline's of the same seed; bar = mean, stroke = a seed.

    Args:
        tables: title of the panel to its rows; each with a "baseline".
        title: of the figure.
        path: of the SVG.
    """
    methods = list(dict.fromkeys(method for table in tables.values() for method in table if method != "baseline"))
    figure = Figure(figsize=(3.2 * len(tables) + 1.5, 1.0 + 0.22 * len(methods)), layout="constrained")
    axes = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    for axis, (panel, table) in zip(axes, tables.items(), strict=True):
        for position, method in enumerate(methods):
            runs = table.get(method, {})
            pairs = comparable(runs, table["baseline"])
            gains = [runs[seed]["mAP"] - row["mAP"] for seed, row in sorted(pairs.items())]
            if gains:
                axis.barh(position, statistics.mean(gains), color="0.75", edgecolor="black", linewidth=0.6)
                axis.plot(gains, [position] * len(gains), "k|", markersize=7, markeredgewidth=1.2)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(panel)
        axis.set_xlabel("mAP − baseline's, points")
        axis.set_yticks(range(len(methods)), methods)
    axes[0].invert_yaxis()
    figure.suptitle(title)
    save_svg(figure, path)
