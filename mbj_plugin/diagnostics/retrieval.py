"""Retrieval on the page: mAP and Rank-1 by identity group, and the worst queries with what they found, as images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mbj_plugin.diagnostics.page import Figure, Section, Table
from mbj_plugin.diagnostics.run import Run
from mbj_plugin.diagnostics.search import Search
from mbj_plugin.diagnostics.style import COLOURS, draw_bars, drawing, legend_below

WORST = 6


def retrieval_section(runs: list[Run], folder: Path) -> Section | None:
    """Tables and bars by identity group for every search, and the worst queries of the first search of each run."""
    if not any(run.searches for run in runs):
        return None
    section = Section(
        "Retrieval by identity group",
        "Test identities are not in training, so they have no class size: they are grouped by how many right images "
        "the gallery holds. Training identities are searched for among the training images, head / medium / tail by "
        "their size; that says how well they are fitted, not how well others are found.",
    )
    titles = list(dict.fromkeys(search.title for run in runs for search in run.searches))
    for number, title in enumerate(titles):
        searches = {run.name: search for run in runs for search in run.searches if search.title == title}
        section.tables.append(_table(title, searches))
        names = list(dict.fromkeys(name for search in searches.values() for name in search.groups))
        if len(names) > 1:
            for index, score in enumerate(("mAP", "Rank-1")):
                path = folder / f"retrieval-{number}-{score}.png"
                draw_scores(searches, names, index, f"{title}: {score}", path)
                section.figures.append(
                    Figure(path, f"Bars of {score} by group: {title}.", f"{score} in percent, {title}.")
                )
        section.gaps += [f"{run}: {search.note}" for run, search in searches.items() if search.note]
    for number, run in enumerate(runs):
        for search in run.searches[:1]:
            with run.part(f"worst queries of {run.name}"):
                path = folder / f"worst-queries-{number}.png"
                draw_worst(search, run.name, path)
                text = (
                    f"{run.name}: the {min(WORST, len(search.query))} of {len(search.query):,} queries with the lowest "
                    "average precision (AP), and their best matches. Solid frame and tick: right; dashed frame and "
                    "cross: wrong."
                )
                section.figures.append(Figure(path, text, text, wide=True))
    return section


def _table(title: str, searches: dict[str, Search]) -> Table:
    rows = []
    for run, search in searches.items():
        for name, chosen in {"all": np.ones(len(search.query), dtype=bool), **search.groups}.items():
            precision, first = search.scores(chosen)
            identities = len(np.unique(search.identity[chosen]))
            rows.append([f"{run}, {name}", f"{precision:.1f}", f"{first:.1f}", f"{chosen.sum():,}", f"{identities:,}"])
    return Table(["run, group", "mAP, %", "Rank-1, %", "queries", "identities"], rows, title)


def draw_scores(searches: dict[str, Search], names: list[str], score: int, title: str, path: Path) -> None:
    """Bars of mAP (score 0) or Rank-1 (1) by group, one per run."""
    with drawing(path) as figure:
        axis = figure.subplots()
        heights = {}
        for run, search in searches.items():
            none = np.zeros(len(search.query), dtype=bool)
            heights[run] = [search.scores(search.groups.get(name, none))[score] for name in names]
        draw_bars(axis, heights)
        queries = [sum(search.groups[name].sum() for search in list(searches.values())[:1] if name in search.groups)
                   for name in names]  # fmt: skip
        axis.set_xticks(range(len(names)), [f"{name}\n{n:,} queries" for name, n in zip(names, queries, strict=True)])
        axis.set_ylabel(f"{('mAP', 'Rank-1')[score]}, %")
        axis.set_title(title)
        legend_below(figure, axis)


def draw_worst(search: Search, title: str, path: Path) -> None:
    """The queries with the lowest average precision, one a row: the query, then its best matches."""
    worst = np.argsort(search.precision, kind="stable")[:WORST]
    columns = 1 + search.top.shape[1]
    with drawing(path, 0.75 * columns, 1.55 * len(worst) + 0.4) as figure:
        axes = figure.subplots(len(worst), columns, squeeze=False)
        for line, index in zip(axes, worst, strict=True):
            _show(
                line[0],
                search.query_paths[search.query[index]],
                "black",
                "-",
                f"AP {100 * search.precision[index]:.0f} %",
            )
            for axis, match, right in zip(line[1:], search.top[index], search.right[index], strict=True):
                if match < 0:
                    axis.axis("off")
                    continue
                colour, dash, mark = (COLOURS[2], "-", "✓") if right else (COLOURS[1], "--", "✗")
                _show(axis, search.gallery_paths[match], colour, dash, mark)
        figure.suptitle(f"{title}: query (left) and its best matches", fontsize=10)


def _show(axis: Any, path: str, colour: str, dash: str, title: str) -> None:
    with Image.open(path) as image:
        image.thumbnail((128, 128))
        axis.imshow(np.asarray(image.convert("RGB")))
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set(visible=True, color=colour, linestyle=dash, linewidth=2.5)
    axis.set_title(title, fontsize=9, color=colour, pad=3)
