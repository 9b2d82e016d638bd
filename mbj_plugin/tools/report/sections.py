"""The report: all sections in order, as one page and its PNGs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mbj_plugin.tools.files import new_folder
from mbj_plugin.tools.report.classes import class_section, confusion_section
from mbj_plugin.tools.report.curves import curve_section, recorded_section
from mbj_plugin.tools.report.headline import OF_A_SEED, headline
from mbj_plugin.tools.report.memory_view import memory_section
from mbj_plugin.tools.report.page import Section, Table, render
from mbj_plugin.tools.report.retrieval import worst_section
from mbj_plugin.tools.report.run import RunRecord

PAGE = "report.html"
# Of no use to a reader who compares runs.
NOT_SHOWN = {"OUTPUT_DIR", *OF_A_SEED} - {"seed", "mbj_seed"}
DRAW = (
    class_section,
    worst_section,
    confusion_section,
    curve_section,
    memory_section,
    recorded_section,
)


def write_report(runs: list[RunRecord], folder: Path) -> Path:
    """Draw everything that one to eight runs hold; the path of the page is returned.

    ``folder`` is for report.html and the PNGs: empty, not there, or with an older report.
    """
    with new_folder(folder, again=PAGE) as part:
        verdict, results = headline(runs)
        drawn, page = [], RunRecord("page")
        for draw in DRAW:
            with page.part(draw.__name__.replace("_", " ")):  # what cannot be drawn must not cost the rest
                drawn.append(draw(runs))
        title = " and ".join(run.name for run in runs) if len(runs) < 3 else f"{len(runs)} runs"
        gaps = [f"{run.name}: {line}" for run in (*runs, page) for line in run.missing]
        missing = Section("What is not here", gaps=gaps)
        sections = [section for section in (results, _overview(runs), missing, *drawn, _settings(runs)) if section]
        for figure in (figure for section in sections for figure in section.figures):
            (part / figure.name).write_bytes(figure.png)
        (part / PAGE).write_text(render(f"Training report: {title}", verdict, sections), encoding="utf-8")
    return folder / PAGE


def _overview(runs: list[RunRecord]) -> Section:
    facts = dict.fromkeys(name for run in runs for name in run.facts)
    rows = [[fact, *(run.facts.get(fact, "–") for run in runs)] for fact in facts]
    held = [", ".join(f"{int(m.filled):,} of {m.size:,} {kind}s" for kind, m in run.memories.items()) for run in runs]
    rows.append(["memory", *(each or "none found" for each in held)])
    return Section("Runs", tables=[Table(["run", *(run.name for run in runs)], rows)])


def _settings(runs: list[RunRecord]) -> Section:
    """Settings and versions, a column for each run; those that differ first."""
    all_of = [run.settings | {f"version of {name}": version for name, version in run.versions.items()} for run in runs]
    names = dict.fromkeys(name for each in all_of for name in each if name not in NOT_SHOWN)
    rows = [[name, *(_text(each.get(name)) for each in all_of)] for name in names]
    header = ["setting", *(run.name for run in runs)]
    different = [row for row in rows if len(set(row[1:])) > 1]
    tables = [
        Table(header, different, "Settings that differ", folded=True),
        Table(header, [row for row in rows if row not in different], "Settings that are the same", folded=True),
    ]
    return Section("Settings and versions", tables=tables)


def _text(value: Any) -> str:
    return "–" if value is None else str(value)
