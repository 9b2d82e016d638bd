"""Fig. 2 of the paper from the rows of a study: how far the features of tail images spread, over iterations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mbj_plugin.tools.report.style import COLOURS, LINES, MARKERS, drawing


def draw_jitter_study(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """One panel for each control and phase, one line for each level: mean over seeds, with a band of one standard
    deviation.

    Args:
        rows: with "control", "phase", "level", "seed", "lr" and "curve", a list of [iterations, rad^2].
        path: of the PNG.
        title: of the whole figure.
    """
    controls, phases = (list(dict.fromkeys(row[key] for row in rows)) for key in ("control", "phase"))
    levels = sorted({row["level"] for row in rows}, reverse=True)
    with drawing(path, 4.2 * len(phases), 3.1 * len(controls) + 0.3) as figure:
        axes = figure.subplots(len(controls), len(phases), squeeze=False, sharex=True)
        for line, control in zip(axes, controls, strict=True):
            for axis, phase in zip(line, phases, strict=True):
                for level in levels:
                    chosen = [r for r in rows if (r["control"], r["phase"], r["level"]) == (control, phase, level)]
                    if chosen:
                        _draw_level(axis, chosen, levels.index(level))
                lr = next(r["lr"] for r in rows if r["phase"] == phase)
                axis.set_title(f"{control} equal, {phase} (lr {lr:g})")
                axis.set_yscale("log")
                axis.set_xlabel("iterations watched")
                axis.set_ylabel("angular variance, rad²")
        axes[0][0].legend(title="images per other class", ncols=2)
        figure.suptitle(title)


def _draw_level(axis: Any, rows: list[dict[str, Any]], index: int) -> None:
    marks = [mark for mark, _ in rows[0]["curve"]]
    values = np.array([[value for _, value in row["curve"]] for row in rows])
    mean, spread = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(len(marks))
    axis.plot(marks, mean, color=COLOURS[index % 8], ls=LINES[index % 8], marker=MARKERS[index % 8],
              label=str(rows[0]["level"]))  # fmt: skip
    low = np.maximum(mean - spread, values.min(0))
    axis.fill_between(marks, low, mean + spread, color=COLOURS[index % 8], alpha=0.15, lw=0)
