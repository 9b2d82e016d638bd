"""Over time: losses, errors and learning rate; the jitter of Fig. 2."""

from __future__ import annotations

import re

from mbj_plugin.tools.report.page import Section
from mbj_plugin.tools.report.run import RunRecord, colour_of, series
from mbj_plugin.tools.report.style import GROUPS, Curve, draw_lines, plot, shown

UNITS = {"error": "error, %", "batch loss": "loss", "memory loss": "eta × loss"}
PROBES = "mbj/probe_jitter"
# Losses and errors first.
LAST = ("learning rate", "error")


def curve_section(runs: list[RunRecord]) -> Section:
    """Losses, errors and learning rate while the runs trained, one figure for each, all runs in it."""
    section = Section("Training curves")
    names = {name for run in runs for name in run.curves}
    for name in sorted(names, key=lambda name: (*map(name.count, LAST), name)):
        # A run without this curve keeps its place, so that each run has its colour in every figure.
        lines = {run.name: run.curves.get(name, ([], [])) for run in runs}
        unit = next(run.curve_unit for run in runs if name in run.curves)
        last = "; ".join(f"{run} {values[-1]:.4g}" for run, (_, values) in lines.items() if values)
        caption = f"{name[0].upper()}{name[1:]} by {unit}; at the end {last}."
        file = "curve-" + re.sub(r"[^\w-]+", "-", name)
        with plot(section, file, name, UNITS.get(name.partition(",")[0], name), caption) as axis:
            drawn = {shown(run): line for run, line in lines.items()}
            draw_lines(axis, drawn, unit, log=name == "learning rate", first=colour_of(runs, 0))
    return section


def jitter_section(runs: list[RunRecord]) -> Section:
    """Fig. 2 as the run itself recorded it: the jitter of fixed probe images, and of the rows in memory."""
    section = Section(
        "Jitter over iterations (Fig. 2)",
        "How far the features of one image spread over the recorded editions of the model: the mean squared angle to "
        "their mean direction. The paper's finding is that the tail's jitter is the smaller one, and falls with the "
        "learning rate.",
    )
    for number, run in enumerate(runs):
        kinds = {PROBES: "fixed images"}
        kinds |= {f"mbj/{kind}/jitter": f"rows in the {kind} memory" for kind in ("feature", "prototype")}
        for key, what in kinds.items():
            lines = group_lines(run, key)
            if any(xs for xs, _ in lines.values()):
                last = ", ".join(f"{group} {ys[-1]:.2g}" for group, (_, ys) in lines.items() if ys)
                file = f"jitter-{number}-{key.replace('mbj/', '').replace('/', '-')}"
                caption = f"{run.name}, {what}: at the end {last} rad²."
                with plot(section, file, f"{shown(run.name)}: {what}", "angular variance, rad²", caption) as axis:
                    draw_lines(axis, lines, "iteration", log=True)
    return section if section.figures else Section(section.title)


def group_lines(run: RunRecord, key: str) -> dict[str, Curve]:
    """What was recorded as ``key`` of each group over iterations, such as "mbj/feature/age"."""
    return {group: series(run.diagnostics, "step", f"{key}_{group}") for group in GROUPS}
