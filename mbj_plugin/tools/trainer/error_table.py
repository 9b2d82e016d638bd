"""The errors of all classifiers side by side: for the console, a page (Markdown) or a paper (LaTeX)."""

from __future__ import annotations

import numpy as np
from tabulate import tabulate

from mbj_plugin.diagnostics.groups import GROUPS, SHOTS

TABLES = {"text": "simple", "markdown": "github", "latex": "latex_booktabs"}
Errors = dict[str, list[dict[str, float]]]
COLUMNS = {"all": "error", **{key.replace("_", "-"): key for key in (*GROUPS, *SHOTS)}}
SPLITS = (
    "head / medium / tail (20 / 20 / 60 % of the classes by rank); "
    "many / medium / few shot (> 100, 20 to 100, < 20 images)"
)


def error_table(runs: Errors, style: str = "text", headline: str = "error", note: str = "") -> str:
    """A table of errors in percent: mean and standard deviation of each classifier over its seeds, and the paired
    difference to the first line with its standard error; of two seeds the two differences.

    Args:
        runs: classifier to its errors for each seed (:func:`mbj_plugin.tools.trainer.evaluate.errors`).
        style: one of ``TABLES``.
        headline: the error that is compared; with "class_error" it is a column too.
        note: more to say below.
    """
    columns = ({"classes": "class_error"} if headline == "class_error" else {}) | COLUMNS
    first, seeds = next(iter(runs.values())), max(map(len, runs.values()))
    rows = [
        [name, *(mean_and_spread([each[key] for each in errors if key in each]) for key in columns.values())]
        for name, errors in runs.items()
    ]
    header = ["error, %", *columns]
    if seeds > 1 and len(runs) > 1:
        header.append("difference")
        for row, errors in zip(rows, runs.values(), strict=True):
            row.append("" if errors is first else _difference(first, errors, headline))
    caption = f"Test error in percent; {SPLITS}."
    if seeds > 1:
        caption += f" Mean ± standard deviation of {seeds} seeds; difference: to the first line, ± its standard error."
    if headline == "class_error":
        caption += " classes: the mean of the classes' errors, the one to read where test classes differ in size."
    caption += note
    table = tabulate(
        rows, header, TABLES[style], disable_numparse=True, colalign=["left"] + ["right"] * (len(header) - 1)
    )
    return f"% {caption}\n{table}" if style == "latex" else f"{table}\n\n{caption}"


def mean_and_spread(values: list[float]) -> str:
    """As text: a number, or mean and standard deviation."""
    if not values:
        return "-"
    return f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")


def difference(pairs: list[float]) -> str:
    """As text: the mean of paired differences with its standard error; of fewer than three the differences."""
    if len(pairs) < 3:
        return ", ".join(f"{value:+.2f}" for value in pairs)
    return f"{np.mean(pairs):+.2f} ± {np.std(pairs, ddof=1) / np.sqrt(len(pairs)):.2f}"


def _difference(first: list[dict[str, float]], errors: list[dict[str, float]], key: str) -> str:
    if len(first) != len(errors):
        return "-"
    return difference([own[key] - other[key] for own, other in zip(errors, first, strict=True)])
