"""Over time: losses, errors and learning rate; what the memory held; the jitter of Fig. 2."""

from __future__ import annotations

import re
from pathlib import Path

from mbj_plugin.tools.report.page import Figure, Section
from mbj_plugin.tools.report.run import Run, series
from mbj_plugin.tools.report.style import (
    COLOURS,
    GROUP_COLOURS,
    GROUPS,
    LINES,
    MARKERS,
    log_axis,
    plot,
    shown,
)

Curve = tuple[list[float], list[float]]
UNITS = {"error": "error, %", "learning rate": "learning rate", "batch loss": "loss", "memory loss": "eta × loss"}
PROBES = "mbj/probe_jitter"
# Losses and errors first.
LAST = ("learning rate", "error")


def curve_section(runs: list[Run], folder: Path) -> Section | None:
    """Losses, errors and learning rate while the runs trained, one figure for each, all runs in it."""
    names = sorted({name for run in runs for name in run.curves}, key=lambda name: (*map(name.count, LAST), name))
    section = Section("Training curves")
    for name in names:
        # A run without this curve keeps its place, so that each run has its colour in every figure.
        lines = {run.name: run.curves.get(name, ([], [])) for run in runs}
        path = folder / ("curve-" + re.sub(r"[^\w-]+", "-", name) + ".png")
        unit = next(run.curve_unit for run in runs if name in run.curves)
        draw_curves(lines, name, unit, UNITS.get(name.partition(",")[0], name), path)
        last = "; ".join(f"{run} {values[-1]:.4g}" for run, (_, values) in lines.items() if values)
        text = f"{name[0].upper()}{name[1:]} by {unit}. The last: {last}."
        section.figures.append(Figure(path, text, text))
    return section if section.figures else None


def draw_curves(lines: dict[str, Curve], title: str, x: str, y: str, path: Path, log: bool = False) -> None:
    """One line per name, told apart by colour, dash and marker; a name without points is left out."""
    with plot(path, title, y) as axis:
        for index, (name, (xs, ys)) in enumerate(lines.items()):
            if xs:
                every = max(len(xs) // 8, 1)
                marks = (index * every // len(lines), every)
                colour = GROUP_COLOURS.get(name, COLOURS[index])
                axis.plot(
                    xs, ys, color=colour, ls=LINES[index], marker=MARKERS[index], markevery=marks, label=shown(name)
                )
        values = [v for _, ys in lines.values() for v in ys]
        if (log or title == "learning rate") and values and min(values) > 0:
            log_axis(axis)
        axis.set_xlabel(x)


def jitter_section(runs: list[Run], folder: Path) -> Section | None:
    """Fig. 2 as the run itself recorded it: the jitter of fixed probe images, and of the rows in memory."""
    section = Section(
        "Jitter over iterations (Fig. 2)",
        "How far the features of one image spread over the recorded editions of the model: the mean squared angle to "
        "their mean direction.",
    )
    for number, run in enumerate(runs):
        if not run.diagnostics:
            continue
        kinds = {PROBES: "fixed images"}
        kinds |= {f"mbj/{kind}/jitter": f"rows in the {kind} memory" for kind in ("feature", "prototype")}
        for key, what in kinds.items():
            if lines := group_lines(run, key):
                path = folder / f"jitter-{number}-{key.replace('mbj/', '').replace('/', '-')}.png"
                draw_curves(lines, f"{shown(run.name)}: {what}", "iteration", "angular variance, rad²", path, log=True)
                last = ", ".join(f"{group} {ys[-1]:.2g}" for group, (_, ys) in lines.items())
                text = f"{run.name}, {what}: at the end {last} rad²."
                section.figures.append(Figure(path, f"Jitter over iterations. {text}", text))
        if not any(f"{PROBES}_{group}" in row for row in run.diagnostics for group in GROUPS):
            section.gaps.append(f"{run.name}: diagnostics.jsonl holds no jitter of fixed images")
    if silent := [run.name for run in runs if not run.diagnostics]:
        section.gaps.append(f"{', '.join(silent)}: nothing was recorded while training")
    return section


def group_lines(run: Run, key: str) -> dict[str, Curve]:
    """What was recorded as ``key`` of each group over iterations, such as "mbj/feature/age"."""
    lines = {group: series(run.diagnostics, "step", f"{key}_{group}") for group in GROUPS}
    return {group: line for group, line in lines.items() if line[0]}
