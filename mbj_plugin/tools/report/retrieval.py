"""Retrieval on the page: the worst queries with what they found, as images."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from mbj_plugin.tools.report.page import Section
from mbj_plugin.tools.report.run import RunRecord
from mbj_plugin.tools.report.search import Query
from mbj_plugin.tools.report.style import picture, shown

WORST = 6


def worst_section(runs: list[RunRecord]) -> Section:
    """The worst queries of the first test set of each run, and what they found."""
    section = Section(
        "The worst queries",
        "Left the query with its average precision (AP), then its best matches, last the best right image with its "
        "rank. Solid frame and tick: right; dashed frame and cross: wrong.",
        large=True,
    )
    for number, run in enumerate(runs):
        for title, queries in list(run.searches.items())[:1]:
            worst = sorted(queries, key=lambda query: query.precision)[:WORST]
            caption = f"{run.name}: the {len(worst)} worst of {len(queries):,} queries of {title}, the worst on top."
            with run.part("worst queries"):
                _draw(section, f"worst-queries-{number}", worst, run.name, caption)
    return section


def _draw(section: Section, file: str, queries: list[Query], title: str, caption: str) -> None:
    """One query a row: the query, its best matches, the best right image."""
    columns = 2 + max(len(query.best) for query in queries)
    with picture(section, file, "The worst queries", caption, 0.75 * columns, 1.55 * len(queries) + 0.4) as figure:
        axes = figure.subplots(len(queries), columns, squeeze=False)
        for axis in axes.flat:
            axis.axis("off")
        for line, query in zip(axes, queries, strict=True):
            _show(line[0], query.path, True, f"AP {100 * query.precision:.0f} %")
            for axis, (path, right) in zip(line[1:], query.best, strict=False):
                _show(axis, path, right, "✓" if right else "✗")
            _show(line[-1], query.nearest, True, f"✓ {query.rank:,}.")
        figure.suptitle(shown(title), fontsize=10)


def _show(axis: Any, path: str, right: bool, title: str) -> None:
    with Image.open(path) as image:
        image.thumbnail((128, 128))
        axis.imshow(np.asarray(image.convert("RGB")))
    axis.axis("on")
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set(visible=True, color="black" if right else "#8C8C8C", linestyle="-" if right else "--", linewidth=2.5)
    axis.set_title(title, fontsize=9, pad=3)
