"""The report: all sections in order, as one page and its PNGs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mbj_plugin.tools.report.classes import class_section, confusion_section
from mbj_plugin.tools.report.curves import curve_section, jitter_section
from mbj_plugin.tools.report.embedding import embedding_section
from mbj_plugin.tools.report.memory_view import memory_section
from mbj_plugin.tools.report.page import Section, Table, merged, render
from mbj_plugin.tools.report.retrieval import retrieval_section, worst_section
from mbj_plugin.tools.report.run import Run
from mbj_plugin.tools.report.style import COLOURS

PAGE = "report.html"
# Of no use to a reader who compares runs.
PLACES = ("output", "experiment", "local_rank", "rank", "progress", "compare", "seeds", "OUTPUT_DIR")
DRAW = (
    class_section,
    retrieval_section,
    worst_section,
    confusion_section,
    curve_section,
    memory_section,
    jitter_section,
    embedding_section,
)


def check_number(runs: int) -> None:
    """Raises ValueError for no run, or more than can be told apart."""
    if not 1 <= runs <= len(COLOURS):
        raise ValueError(f"a page compares 1 to {len(COLOURS)} runs, got {runs}: give fewer")


def write_report(runs: list[Run], folder: Path) -> Path:
    """Draw everything that the runs hold.

    Args:
        runs: one to eight.
        folder: for report.html and the PNGs; made where it is not there.

    Returns:
        Path of the page.

    Raises:
        ValueError: for no run, or more than can be told apart.
    """
    check_number(len(runs))
    folder.mkdir(parents=True, exist_ok=True)
    sections = [section for draw in DRAW if (section := _section(draw, runs, folder)) is not None]
    title = " and ".join(run.name for run in runs) if len(runs) < 3 else f"{len(runs)} runs"
    missing = merged([(run.name, line) for run in runs for line in run.missing])
    first = [_overview(runs)]
    if missing:
        first.append(Section("What is not here", gaps=missing))
    subtitle = "Error, memory, jitter and embedding of a long-tailed run with Memory-based Jitter (MBJ) or without."
    page = folder / PAGE
    page.write_text(
        render(f"Training report: {title}", subtitle, [*first, *sections, _settings(runs)]), encoding="utf-8"
    )
    return page


def _section(draw: Callable[[list[Run], Path], Section | None], runs: list[Run], folder: Path) -> Section | None:
    """A section of the runs without those that break it alone; what is left out is a line on its run."""
    what = draw.__name__.replace("_", " ")
    try:
        return draw(runs, folder)
    except Exception as error:  # a broken run can raise anything, and must not cost the rest of the page
        reason = error
    sound = []
    for run in runs:
        with run.part(what), TemporaryDirectory() as scratch:
            draw([run], Path(scratch))
            sound.append(run)
    if 0 < len(sound) < len(runs):
        return _section(draw, sound, folder)
    for run in sound:  # each can be drawn, all of them cannot
        with run.part(what):
            raise reason
    return None


def _overview(runs: list[Run]) -> Section:
    facts = list(dict.fromkeys(name for run in runs for name in run.facts))
    rows = [[fact, *(run.facts.get(fact, "–") for run in runs)] for fact in facts]
    rows += [["memory", *(_memory(run) for run in runs)]]
    tables = [Table(["run", *(run.name for run in runs)], rows)]
    different = _different(runs)
    if different:
        tables.append(Table(["setting", *(run.name for run in runs)], different, "Settings that differ", folded=True))
    return Section("Runs", tables=tables)


def _memory(run: Run) -> str:
    return ", ".join(f"{len(m.labels):,} of {m.size:,} {m.kind}s" for m in run.memories) or "none found"


def _different(runs: list[Run]) -> list[list[str]]:
    """Settings that are not the same in all runs that have any."""
    settings = [run.settings for run in runs]
    if len(runs) < 2 or not all(settings):
        return []
    names = list(dict.fromkeys(name for each in settings for name in each))
    rows = [[name, *(_text(each.get(name)) for each in settings)] for name in names if name not in PLACES]
    return [row for row in rows if len(set(row[1:])) > 1]


def _text(value: Any) -> str:
    return "–" if value is None else str(value)


def _settings(runs: list[Run]) -> Section:
    section = Section("Settings and versions")
    for run in runs:
        if run.versions:
            rows = [[name, value] for name, value in run.versions.items()]
            section.tables.append(Table(["package", "version"], rows, f"Versions of {run.name}", folded=True))
        if run.settings:
            rows = [[name, _text(value)] for name, value in run.settings.items()]
            section.tables.append(Table(["setting", "value"], rows, f"All settings of {run.name}", folded=True))
    if not section.tables:
        section.gaps.append("neither settings nor versions were found")
    return section
