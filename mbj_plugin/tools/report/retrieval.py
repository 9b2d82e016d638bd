"""Retrieval on the page: mAP and Rank-1 by identity group, and the worst queries with what they found, as images."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from mbj_plugin.tools.report.page import Section, Table, merged
from mbj_plugin.tools.report.run import RunRecord
from mbj_plugin.tools.report.search import Search
from mbj_plugin.tools.report.style import draw_bars, picture, plot, shown

WORST = 6
SCORES = ("mAP", "Rank-1")


def retrieval_section(runs: list[RunRecord]) -> Section:
    """Tables and bars of mAP and Rank-1 by identity group, for every search."""
    section = Section(
        "Retrieval by identity group",
        "Test identities are not in training, so they have no class size: they are grouped by how many right images "
        "the gallery holds. Training identities are searched for among the training images, head / medium / tail by "
        "their size; that says how well they are fitted, not how well others are found.",
    )
    titles = dict.fromkeys(search.title for run in runs for search in run.searches)
    gaps = []
    for number, title in enumerate(titles):
        searches = {run.name: search for run in runs for search in run.searches if search.title == title}
        names = list(dict.fromkeys(name for search in searches.values() for name in search.groups))
        section.tables.append(_table(title, searches, names))
        groups = [name for name in names if not name.endswith("shot")]  # those are in the table
        for index, score in enumerate(SCORES):
            if len(groups) > 1:
                caption = f"{score} by group: {title}. Higher is better; compare the tail's bars."
                with plot(section, f"retrieval-{number}-{score}", f"{title}: {score}", f"{score}, %", caption) as axis:
                    draw_scores(axis, searches, groups, index)
        gaps += [(run, search.note) for run, search in searches.items() if search.note]
    section.gaps = merged(gaps)
    return section


def worst_section(runs: list[RunRecord]) -> Section:
    """The worst queries of the first search of each run, and what they found."""
    section = Section(
        "The worst queries",
        "Left the query with its average precision (AP), then its best matches, last the best right image with its "
        "rank. Solid frame and tick: right; dashed frame and cross: wrong.",
        large=True,
    )
    for number, run in enumerate(runs):
        for search in run.searches[:1]:
            with run.part("worst queries"):
                worst, queries = min(WORST, len(search.query)), len(search.query)
                caption = f"{run.name}: the {worst} worst of {queries:,} queries, {search.title}, the worst on top."
                draw_worst(section, f"worst-queries-{number}", search, run.name, caption)
    return section


def _table(title: str, searches: dict[str, Search], names: list[str]) -> Table:
    """One line for each group; queries and identities are those of the first run, differences are to it."""
    first = next(iter(searches.values()))
    rows = []
    for group in ("all", *(names if len(names) > 1 else ())):
        chosen = [_of_group(search, group) for search in searches.values()]
        cells = [f"{chosen[0].sum():,}", f"{len(np.unique(first.identity[chosen[0]])):,}"]
        of_first = first.scores(chosen[0])
        for search, mask in zip(searches.values(), chosen, strict=True):
            scores = search.scores(mask)
            cells += [f"{score:.1f}" if np.isfinite(score) else "–" for score in scores]
            if search is not first:
                change = scores[0] - of_first[0]
                cells.append(f"{change:+.1f}".replace("-", "−") if np.isfinite(change) else "–")
        rows.append([group, *cells])
    header = ["group", "queries", "identities"]
    for name, search in searches.items():
        header += [f"{name} mAP", "Rank-1", *(["mAP to the first"] if search is not first else [])]
    return Table(header, rows, f"{title}; mAP and Rank-1 in percent.")


def _of_group(search: Search, group: str) -> np.ndarray:
    every = np.ones(len(search.query), dtype=bool)
    return search.groups.get(group, every if group == "all" else ~every)


def draw_scores(axis: Any, searches: dict[str, Search], names: list[str], score: int) -> None:
    """Bars of mAP (score 0) or Rank-1 (1) by group, one per run."""
    draw_bars(
        axis, {shown(run): [s.scores(_of_group(s, name))[score] for name in names] for run, s in searches.items()}
    )
    queries = [int(_of_group(next(iter(searches.values())), name).sum()) for name in names]
    axis.set_xticks(range(len(names)), [f"{name}\n{n:,} queries" for name, n in zip(names, queries, strict=True)])


def draw_worst(section: Section, file: str, search: Search, title: str, caption: str) -> None:
    """The queries with the lowest average precision, one a row: the query, its best matches, the best right image."""
    worst = np.argsort(search.precision, kind="stable")[:WORST]
    columns = 2 + search.top.shape[1]
    with picture(section, file, "The worst queries", caption, 0.75 * columns, 1.55 * len(worst) + 0.4) as figure:
        axes = figure.subplots(len(worst), columns, squeeze=False)
        for line, index in zip(axes, worst, strict=True):
            _show(line[0], search.query_paths[search.query[index]], "-", f"AP {100 * search.precision[index]:.0f} %")
            for axis, match, right in zip(line[1:-1], search.top[index], search.right[index], strict=True):
                if match < 0:
                    axis.axis("off")
                else:
                    _show(axis, search.gallery_paths[match], "-" if right else "--", "✓" if right else "✗")
            _show(line[-1], search.gallery_paths[search.nearest[index]], "-", f"✓ {search.rank[index]:,}.")
        figure.suptitle(shown(title), fontsize=10)


def _show(axis: Any, path: str, dash: str, title: str) -> None:
    with Image.open(path) as image:
        image.thumbnail((128, 128))
        axis.imshow(np.asarray(image.convert("RGB")))
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set(visible=True, color="black" if dash == "-" else "#8C8C8C", linestyle=dash, linewidth=2.5)
    axis.set_title(title, fontsize=9, pad=3)
