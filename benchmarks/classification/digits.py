"""Rows of scikit-learn's digits, from the run folders of `mbj train --seeds 10`, which docs/results/digits.md names.

python -m benchmarks.classification.digits FOLDER [FOLDER ...]
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.svg import save_svg, svg_style
from benchmarks.tables import column, markdown
from mbj_plugin.tools.report.style import COLOURS

ROWS, FIGURE = Path("docs/results/digits.jsonl"), Path("docs/results/digits.svg")
METHODS = {
    "ce": "cross-entropy",
    "logit_adjusted": "its logit adjustment, tau 1",
    "mbj": "MBJ",
    "balanced": "MBJ, `--mbj-recipe balanced`",
    "balanced_softmax": "balanced softmax",
}
HATCHES = ("", "///", "xxx")
DRAWN = {"ce": "cross-entropy", "logit_adjusted": "its logit adjustment", "mbj": "MBJ"}
GROUPS = ("error", "head", "medium", "tail", "many_shot", "medium_shot", "few_shot")
HEAD = ("", "all", "head", "medium", "tail", "many", "medium-shot", "few")


def rows(folder: Path) -> Iterator[dict[str, Any]]:
    """A row of each classifier that a finished run gives and no other run of ours has."""
    result = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    settings, classifiers = result["settings"], result.get("classifiers", {})
    if not settings["mbj"]:
        names = {settings["loss"]: result["errors"]}
    elif settings["mbj_recipe"] == "balanced":
        names = {"balanced": result["errors"]}
    else:
        ours = {"ce": "batch", "logit_adjusted": "batch_adjusted", "mbj": "memory"}
        names = {method: classifiers[name]["errors"] for method, name in ours.items()}
    for method, errors in names.items():
        numbers = {group: errors[group] for group in GROUPS}
        yield {"method": method, "seed": settings["seed"], **numbers, "device": "cpu", "versions": result["versions"]}


def table(path: Path = ROWS) -> str:
    """Markdown: error of each method by class group, mean ± standard deviation over the seeds."""
    lines = []
    for method, title in METHODS.items():
        errors = _errors(method, path)
        lines.append([title, *(f"{statistics.mean(each):.2f} ± {statistics.stdev(each):.2f}" for each in errors)])
    return markdown(list(HEAD), lines)


def _errors(method: str, path: Path) -> list[list[float]]:
    """Of each group the errors of all seeds."""
    every = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    runs = {row["seed"]: row for row in every if row["method"] == method}
    return [list(column(runs, group).values()) for group in GROUPS]


@svg_style
def draw(path: Path = FIGURE, rows: Path = ROWS) -> None:
    """Head, medium and tail error of the classifiers that one command trains, with the seeds' standard deviation."""
    figure = Figure(figsize=(5.2, 2.5), layout="constrained")
    axis = figure.subplots()
    for index, (method, title) in enumerate(DRAWN.items()):
        groups = _errors(method, rows)[1:4]
        means, spread = ([of(each) for each in groups] for of in (statistics.mean, statistics.stdev))
        look: Any = {"color": COLOURS[index], "hatch": HATCHES[index], "edgecolor": "white", "ecolor": "#444444"}
        places = [place + 0.27 * (index - 1) for place in range(3)]
        bars = axis.bar(places, means, 0.27, yerr=spread, capsize=2, error_kw={"lw": 0.8}, label=title, **look)
        axis.bar_label(bars, fmt="%.1f", padding=1)
    axis.set(ylim=(0, None), ylabel="test error, %")
    axis.set_xticks(range(3), ["head (20 % of the classes)", "medium (20 %)", "tail (60 %)"])
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="upper left", frameon=False)
    save_svg(figure, path)


def main(argv: list[str] | None = None) -> None:
    """The command: it writes the rows of all folders, and nothing else, into the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders of them")
    runs = [run for folder in parser.parse_args(argv).folders for run in sorted(folder.rglob("results.json"))]
    ROWS.write_text("".join(json.dumps(row) + "\n" for run in runs for row in rows(run.parent)), encoding="utf-8")


if __name__ == "__main__":
    main()
