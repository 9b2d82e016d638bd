"""The errors of all classifiers side by side: for the console, a page (Markdown) or a paper (LaTeX)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from tabulate import tabulate

from mbj_plugin.longtail import GROUPS, SHOTS

TABLES = {"text": "simple", "markdown": "github", "latex": "latex_booktabs"}
#: Classifier to its errors for each seed, None where that run has not the classifier.
Errors = Mapping[str, Sequence[dict[str, float] | None]]
COLUMNS = {"all": "error", **{key.replace("_", "-"): key for key in (*GROUPS, *SHOTS)}}
SPLITS = (
    "head / medium / tail (20 / 20 / 60 % of the classes by rank); "
    "many / medium / few shot (> 100, 20 to 100, < 20 images)"
)


def error_table(runs: Errors, style: str = "text", headline: str = "error", note: str = "") -> str:
    """A table of errors in percent: mean and standard deviation of each classifier over its seeds, and the paired
    difference to the first line with its standard error; of two seeds the two differences.

    The error ``headline`` is compared, and "class_error" is a column then too. ``note`` stands below.
    """
    columns = ({"classes": "class_error"} if headline == "class_error" else {}) | COLUMNS
    seeds = max(map(len, runs.values()))
    header, rows = ["error, %", *columns, "difference"], error_rows(runs, list(columns.values()), headline)
    if seeds == 1 or len(runs) == 1:
        header, rows = header[:-1], [row[:-1] for row in rows]
    caption = f"Test error in percent; {SPLITS}."
    if seeds > 1:
        caption += f" Mean ± standard deviation of {seeds} seeds; difference: to the first line, ± its standard error."
    if headline == "class_error":
        caption += " classes: the mean of the classes' errors, the one to read where test classes differ in size."
    caption += note
    table = text_table(rows, header, style)
    return f"% {caption}\n{table}" if style == "latex" else f"{table}\n\n{caption}"


def error_rows(runs: Errors, columns: Sequence[str], compared: str = "error") -> list[list[str]]:
    """Cells of a table: name, mean and spread of each column, and last the paired difference to the first line."""
    first = next(iter(runs.values()))
    rows = []
    for name, line in runs.items():
        cells = [mean_and_spread([each[key] for each in line if each and key in each]) for key in columns]
        rows.append([name, *cells, "" if line is first else difference(paired(line, first, compared))])
    return rows


def paired(
    line: Sequence[dict[str, float] | None], first: Sequence[dict[str, float] | None], key: str = "error"
) -> list[float]:
    """Differences of a line to the first one, of the seeds that both have."""
    both = [(a, b) for a, b in zip(line, first, strict=True) if a and b]
    return [a[key] - b[key] for a, b in both if key in a and key in b]


def text_table(rows: list[list[str]], header: list[str], style: str) -> str:
    """Names to the left, numbers to the right, in one of ``TABLES``."""
    aligned = ["left"] + ["right"] * (len(header) - 1)
    return tabulate(rows, header, TABLES[style], disable_numparse=True, colalign=aligned)


def mean_and_spread(values: list[float]) -> str:
    """As text: a number, or mean and standard deviation."""
    if not values:
        return "-"
    return f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")


def difference(pairs: list[float]) -> str:
    """As text: the mean of paired differences with its standard error; of fewer than three the differences."""
    if len(pairs) < 3:
        return ", ".join(f"{value:+.2f}" for value in pairs) or "-"
    return f"{np.mean(pairs):+.2f} ± {np.std(pairs, ddof=1) / np.sqrt(len(pairs)):.2f}"
