"""Retrieval on the page: mAP and Rank-1 by identity group, and the worst queries with what they found, as images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mbj_plugin.tools.report.page import Figure, Section, Table, merged
from mbj_plugin.tools.report.run import Run
from mbj_plugin.tools.report.search import Search
from mbj_plugin.tools.report.style import COLOURS, draw_bars, drawing, plot, shown

WORST = 6


def retrieval_section(runs: list[Run], folder: Path) -> Section | None:
    """Tables and bars of mAP and Rank-1 by identity group, for every search."""
    if not any(run.searches for run in runs):
        return None
    section = Section(
        "Retrieval by identity group",
        "Test identities are not in training, so they have no class size: they are grouped by how many right images "
        "the gallery holds. Training identities are searched for among the training images, head / medium / tail by "
        "their size; that says how well they are fitted, not how well others are found.",
    )
    titles = list(dict.fromkeys(search.title for run in runs for search in run.searches))
    gaps = []
    for number, title in enumerate(titles):
        searches = {run.name: search for run in runs for search in run.searches if search.title == title}
        names = list(dict.fromkeys(name for search in searches.values() for name in search.groups))
        section.tables.append(_table(title, searches, names))
        # Two splits of the same identities make two figures.
        shots = [name for name in names if name.endswith("shot")]
        for part, group in enumerate(([name for name in names if name not in shots], shots)):
            for index, score in enumerate(("mAP", "Rank-1")):
                if len(group) > 1:
                    path = folder / f"retrieval-{number}-{part}-{score}.png"
                    draw_scores(searches, group, index, f"{title}: {score}", path)
                    text = f"{score} in percent by group: {title}."
                    section.figures.append(Figure(path, text, text))
        gaps += [(run, search.note) for run, search in searches.items() if search.note]
    section.gaps = merged(gaps)
    return section


def worst_section(runs: list[Run], folder: Path) -> Section | None:
    """The worst queries of the first search of each run, and what they found."""
    section = Section(
        "The worst queries",
        "Left the query with its average precision (AP), then its best matches, last the best right image with its "
        "rank. Solid frame and tick: right; dashed frame and cross: wrong.",
        large=True,
    )
    for number, run in enumerate(runs):
        for search in run.searches[:1]:
            with run.part(f"worst queries of {run.name}"):
                path = folder / f"worst-queries-{number}.png"
                draw_worst(search, run.name, path)
                worst, queries = min(WORST, len(search.query)), len(search.query)
                text = f"{run.name}: the {worst} worst of {queries:,} queries, {search.title}."
                section.figures.append(Figure(path, text, text))
    return section if section.figures else None


def _table(title: str, searches: dict[str, Search], names: list[str]) -> Table:
    """One line for each group; queries and identities are those of the first run."""
    first = next(iter(searches.values()))
    everyone = {name: np.ones(len(search.query), dtype=bool) for name, search in searches.items()}
    rows = []
    for group in ("all", *(names if len(names) > 1 else ())):
        chosen = {run: search.groups.get(group, everyone[run] & (group == "all")) for run, search in searches.items()}
        of_first = chosen[next(iter(searches))]
        cells = [f"{of_first.sum():,}", f"{len(np.unique(first.identity[of_first])):,}"]
        for run, search in searches.items():
            cells += [f"{score:.1f}" if np.isfinite(score) else "–" for score in search.scores(chosen[run])]
        rows.append([group, *cells])
    scores = [f"{run} {score}" for run in searches for score in ("mAP", "Rank-1")]
    return Table(["group", "queries", "identities", *scores], rows, f"{title}; mAP and Rank-1 in percent.")


def draw_scores(searches: dict[str, Search], names: list[str], score: int, title: str, path: Path) -> None:
    """Bars of mAP (score 0) or Rank-1 (1) by group, one per run."""
    with plot(path, title, f"{('mAP', 'Rank-1')[score]}, %") as axis:
        heights = {}
        for run, search in searches.items():
            none = np.zeros(len(search.query), dtype=bool)
            heights[run] = [search.scores(search.groups.get(name, none))[score] for name in names]
        draw_bars(axis, heights)
        queries = [sum(search.groups[name].sum() for search in list(searches.values())[:1] if name in search.groups)
                   for name in names]  # fmt: skip
        axis.set_xticks(range(len(names)), [f"{name}\n{n:,} queries" for name, n in zip(names, queries, strict=True)])


def draw_worst(search: Search, title: str, path: Path) -> None:
    """The queries with the lowest average precision, one a row: the query, its best matches, the best right image."""
    worst = np.argsort(search.precision, kind="stable")[:WORST]
    columns = 2 + search.top.shape[1]
    with drawing(path, 0.75 * columns, 1.55 * len(worst) + 0.4) as figure:
        axes = figure.subplots(len(worst), columns, squeeze=False)
        for line, index in zip(axes, worst, strict=True):
            score = f"AP {100 * search.precision[index]:.0f} %"
            _show(line[0], search.query_paths[search.query[index]], "black", "-", score)
            for axis, match, right in zip(line[1:-1], search.top[index], search.right[index], strict=True):
                if match < 0:
                    axis.axis("off")
                    continue
                colour, dash, mark = (COLOURS[2], "-", "✓") if right else (COLOURS[1], "--", "✗")
                _show(axis, search.gallery_paths[match], colour, dash, mark)
            rank = f"✓ {search.rank[index]:,}."
            _show(line[-1], search.gallery_paths[search.nearest[index]], COLOURS[2], "-", rank)
        figure.suptitle(shown(title), fontsize=10)


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
