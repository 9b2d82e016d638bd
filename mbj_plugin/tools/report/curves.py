"""Over time: losses, errors and learning rate; what the memory held, and the jitter of Fig. 2."""

from __future__ import annotations

from mbj_plugin.longtail import GROUPS
from mbj_plugin.tools.report.page import Section
from mbj_plugin.tools.report.run import RunRecord, colour_of, series
from mbj_plugin.tools.report.style import draw_lines, plot, shown

UNITS = {"error": "error, %", "tail error": "error, %", "batch loss": "loss", "memory loss": "eta × loss"}
#: What is recorded of each memory: a figure's title, and its axis.
RECORDED: dict[str, tuple[str, str]] = {}
for kind in ("feature", "prototype"):
    RECORDED[f"mbj/{kind}/entries"] = (f"{kind} memory, rows", "rows")
    RECORDED[f"mbj/{kind}/age"] = (f"{kind} memory, age", "mean age, iterations")
    RECORDED[f"mbj/{kind}/jitter"] = (f"{kind} memory, jitter of the rows", "angular variance, rad²")


def curve_section(runs: list[RunRecord]) -> Section:
    """Losses, errors and learning rate while the runs trained, one figure for each, all runs in it."""
    section = Section("Training curves")
    names = {name for run in runs for name in run.curves}
    for name in sorted(names, key=lambda name: (name == "learning rate", "error" in name, name)):
        # A run without this curve keeps its place, so that each run has its colour in every figure.
        lines = {run.name: run.curves.get(name, {}).get("", ([], [])) for run in runs}
        first = colour_of(runs, 0)
        if len(runs) == 1 and len(own := {key: line for key, line in runs[0].curves[name].items() if key}):
            lines, first = own, 0
        unit = next(run.curve_unit for run in runs if name in run.curves)
        last = "; ".join(f"{line} {values[-1]:.4g}" for line, (_, values) in lines.items() if values)
        caption = f"{name[0].upper()}{name[1:]} by {unit}; at the end {last}."
        with plot(section, f"curve-{name}", name, UNITS.get(name, name), caption) as axis:
            drawn = {shown(line): points for line, points in lines.items()}
            draw_lines(axis, drawn, unit, log=name == "learning rate", first=first)
    return section


def recorded_section(runs: list[RunRecord]) -> Section:
    """What the run itself recorded of its memories, a figure for each with a line a group."""
    section = Section(
        "Memory and jitter while training",
        "Jitter is how far the rows of a class in the memory spread: the mean squared angle to their mean direction. "
        "For prototypes it is the paper's jitter alone; the rows of features differ by their images as well.",
    )
    for number, run in enumerate(runs):
        for key, (what, unit) in RECORDED.items():
            lines = {group: series(run.diagnostics, run.curve_unit, f"{key}_{group}") for group in GROUPS}
            last = ", ".join(f"{group} {ys[-1]:,.4g}" for group, (_, ys) in lines.items() if ys)
            if last:
                caption = f"{run.name}, {what}: at the end {last}."
                file = f"recorded-{number}-{key.removeprefix('mbj/')}"
                with plot(section, file, f"{shown(run.name)}: {what}", unit, caption) as axis:
                    draw_lines(axis, lines, run.curve_unit, log="rad" in unit)
    return section
