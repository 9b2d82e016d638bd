"""The report: all sections in order, as one page and its PNGs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mbj_plugin.files import new_folder
from mbj_plugin.tools.report.classes import class_section, confusion_section
from mbj_plugin.tools.report.curves import curve_section, jitter_section
from mbj_plugin.tools.report.embedding import embedding_section
from mbj_plugin.tools.report.headline import OF_A_SEED, headline
from mbj_plugin.tools.report.memory_view import memory_section
from mbj_plugin.tools.report.page import Section, Table, merged, render
from mbj_plugin.tools.report.retrieval import retrieval_section, worst_section
from mbj_plugin.tools.report.run import RunRecord
from mbj_plugin.tools.report.style import COLOURS

PAGE = "report.html"
# Of no use to a reader who compares runs.
PLACES = {"OUTPUT_DIR", *OF_A_SEED} - {"seed", "mbj_seed"}
DRAW: tuple[Callable[[list[RunRecord]], Section], ...] = (
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


def write_report(runs: list[RunRecord], folder: Path) -> Path:
    """Draw everything that the runs hold.

    Args:
        runs: one to eight.
        folder: for report.html and the PNGs: empty, not there, or with an older report.

    Returns:
        Path of the page.

    Raises:
        ValueError: for too many runs, and for a folder with other files or that cannot be written.
    """
    check_number(len(runs))
    with new_folder(folder, again=PAGE) as part:
        verdict, results = headline(runs)
        sections = [section for draw in DRAW if (section := _section(draw, runs))]
        title = " and ".join(run.name for run in runs) if len(runs) < 3 else f"{len(runs)} runs"
        missing = merged([(run.name, line) for run in runs for line in run.missing])
        gaps = [Section("What is not here", gaps=missing)] if missing else []
        sections = [*([results] if results else []), _overview(runs), *gaps, *sections, _settings(runs)]
        for figure in (figure for section in sections for figure in section.figures):
            (part / figure.name).write_bytes(figure.png)
        (part / PAGE).write_text(render(f"Training report: {title}", verdict, sections), encoding="utf-8")
    return folder / PAGE


def _section(draw: Callable[[list[RunRecord]], Section], runs: list[RunRecord]) -> Section:
    """A section of the runs that can be drawn; what is left out is a line on its run."""
    try:
        return draw(runs)
    except Exception as error:  # a broken run can raise anything, and must not cost the rest of the page
        failure = error
    sound = []
    for run in runs:
        with run.part(draw.__name__.replace("_", " ")):
            draw([run])
            sound.append(run)
    if 0 < len(sound) < len(runs):
        return _section(draw, sound)
    for run in sound:  # each can be drawn, all of them cannot
        run.missing.append(f"{draw.__name__.replace('_', ' ')}: {failure}")
    return Section("")


def _overview(runs: list[RunRecord]) -> Section:
    facts = list(dict.fromkeys(name for run in runs for name in run.facts))
    rows = [[fact, *(run.facts.get(fact, "–") for run in runs)] for fact in facts]
    held = [", ".join(f"{len(m.labels):,} of {m.size:,} {m.kind}s" for m in run.memories) for run in runs]
    rows.append(["memory", *(each or "none found" for each in held)])
    different = _different(runs)
    tables = [Table(["run", *(run.name for run in runs)], rows)]
    tables.append(Table(["setting", *(run.name for run in runs)], different, "Settings that differ", folded=True))
    return Section("Runs", tables=tables)


def _different(runs: list[RunRecord]) -> list[list[str]]:
    """Settings that are not the same in all runs that have any."""
    settings = [run.settings for run in runs]
    if len(runs) < 2 or not all(settings):
        return []
    names = dict.fromkeys(name for each in settings for name in each if name not in PLACES)
    rows = [[name, *(_text(each.get(name)) for each in settings)] for name in names]
    return [row for row in rows if len(set(row[1:])) > 1]


def _text(value: Any) -> str:
    return "–" if value is None else str(value)


def _settings(runs: list[RunRecord]) -> Section:
    section = Section("Settings and versions")
    for run in runs:
        for what, values in (("Versions", run.versions), ("All settings", run.settings)):
            rows = [[name, _text(value)] for name, value in values.items()]
            section.tables.append(Table(["name", "value"], rows, f"{what} of {run.name}", folded=True))
    if not any(table.rows for table in section.tables):
        section.gaps.append("neither settings nor versions were found")
    return section
