"""The errors of all methods side by side: for the console, or to paste into a page (Markdown) or a paper (LaTeX)."""

from __future__ import annotations

import re

import numpy as np

from mbj_plugin.diagnostics.groups import GROUPS

TABLES = ("text", "markdown", "latex")
Errors = dict[str, list[dict[str, float]]]
COLUMNS = {"all": "error", **{key.replace("_", "-"): key for keys in GROUPS.values() for key in keys}}
# What a method's name may hold and LaTeX reads otherwise.
LATEX = re.compile(r"[&%$#_{}~^\\]")


def error_table(runs: Errors, style: str = "text") -> str:
    """A table of group errors in percent: mean and standard deviation of each method over its seeds.

    Args:
        runs: method to the result of :func:`mbj_plugin.diagnostics.groups.group_errors` for each seed.
        style: one of ``TABLES``.
    """
    return {"text": _text, "markdown": _markdown, "latex": _latex}[style](runs)


def _cell(errors: list[dict[str, float]], key: str) -> str:
    values = [each[key] for each in errors if key in each]
    if not values:
        return "-"
    spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{spread}"


def _seeds(runs: Errors) -> int:
    return max(len(errors) for errors in runs.values())


def _text(runs: Errors) -> str:
    def row(label: str, key: str) -> str:
        return f"{label:<62}" + "".join(f"{_cell(errors, key):>16}" for errors in runs.values())

    seeds = _seeds(runs)
    title = "error, %" + (f" (mean ± standard deviation of {seeds} seeds)" if seeds > 1 else "")
    lines = [f"{title:<62}" + "".join(f"{name:>16}" for name in runs), row("all", "error")]
    for title, keys in GROUPS.items():
        lines.append(title)
        lines += [row("    " + key.removesuffix("_shot"), key) for key in keys]
    if set(runs) == {"baseline", "mbj"} and seeds > 1:
        lower = sum(m["error"] < b["error"] for b, m in zip(runs["baseline"], runs["mbj"], strict=True))
        lines.append(f"mbj has the lower error with {lower} of {seeds} seeds")
    return "\n".join(lines)


def _caption(runs: Errors) -> str:
    seeds = _seeds(runs)
    mean = f"mean ± standard deviation of {seeds} seeds; " if seeds > 1 else ""
    return f"Test error in percent; {mean}{'; '.join(GROUPS)}."


def _markdown(runs: Errors) -> str:
    """Methods are rows, as pages are narrow."""
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" + "|---:" * len(COLUMNS) + "|"]
    for name, errors in runs.items():
        cells = [name, *(_cell(errors, key) for key in COLUMNS.values())]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, "", _caption(runs)])


def _latex(runs: Errors) -> str:
    """A tabular with booktabs' rules; the caption is a comment, as a paper has its own."""

    def tex(cell: str) -> str:
        escaped = LATEX.sub(
            lambda c: {"\\": r"\textbackslash{}", "~": r"\~{}", "^": r"\^{}"}.get(c[0], "\\" + c[0]), cell
        )
        return escaped.replace("±", r"$\pm$")

    lines = [f"% {_caption(runs)}", r"% \usepackage{booktabs}"]
    lines += [
        rf"\begin{{tabular}}{{l{'r' * len(COLUMNS)}}}",
        r"\toprule",
        " & ".join(["", *COLUMNS]) + r" \\",
        r"\midrule",
    ]
    for name, errors in runs.items():
        lines.append(" & ".join([tex(name), *(tex(_cell(errors, key)) for key in COLUMNS.values())]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])
