"""The page docs/results/retrieval.md: tables, figures and what is missing, from the rows alone."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.retrieval.settings import Cell, Settings
from benchmarks.tables import (
    PAIRS,
    Measure,
    Table,
    by_method,
    compared_text,
    known_rows,
    markdown,
    missing_text,
    results_text,
    versions_text,
)

TITLES = {
    "omniglot": "Omniglot",
    "omniglot_val": "Omniglot, validation alphabets (where choices are made)",
    "omniglot_short": "Omniglot, short recipe",
    "omniglot_short_val": "Omniglot, short recipe, validation alphabets",
    "omniglot_r50": "Omniglot, ResNet-50",
    "omniglot_timm": "Omniglot, pretrained",
    "omniglot_timm_val": "Omniglot, pretrained, validation alphabets",
    "omniglot_timm_short": "Omniglot, pretrained, short recipe",
    "omniglot_timm_short_val": "Omniglot, pretrained, short recipe, validation alphabets",
    "glyphs": "Rendered glyphs",
    "market1501": "Market-1501",
    "dukemtmc": "DukeMTMC-reID",
}
# The paper's Table 2, and Table 3 (the whole set: all 751 identities are heads), (mAP, Rank-1) in percent, by H.
PAPER: dict[str, dict[str, dict[int, tuple[float, float]]]] = {
    "market1501": {
        "baseline": {751: (82.7, 93.3), 100: (62.8, 83.8), 50: (60.5, 80.7), 20: (55.6, 78.6)},
        "mbj_star": {100: (71.2, 87.3), 50: (67.1, 85.1), 20: (66.0, 84.2)},
        "mbj_w": {751: (83.0, 93.3), 100: (72.6, 88.4), 50: (68.8, 86.2), 20: (66.7, 84.8)},
    },
    "dukemtmc": {
        "baseline": {100: (52.6, 70.3), 50: (48.0, 67.7), 20: (47.0, 66.0)},
        "mbj_star": {100: (59.4, 77.5), 50: (54.2, 73.2), 20: (54.4, 72.3)},
        "mbj_w": {100: (60.8, 78.6), 50: (56.7, 74.4), 20: (57.9, 75.5)},
    },
}
for _table in PAPER.values():
    _table["mbj_w_paper"] = _table["mbj_w"]  # the paper to the letter, and our choice
MEASURE: Measure = ("mAP", False, 2)
NUMBERS = {"mAP": "mAP", "rank1": "Rank-1", "mINP": "mINP", "train_accuracy": "train acc.", "train_loss": "train loss"}
# Of two methods, neither the baseline.
COMPARED = (
    ("mbj_w", "mbj_w_now_val_margin46"),
    ("mbj_w_sum_eta3", "mbj_w_now_val_margin46"),
    ("mbj_w", "mbj_w_now_glyphs_margin54"),
    ("mbj_w_sum_eta3", "mbj_w_now_glyphs_margin54"),
    ("mbj_w_sum_eta3", "mbj_w"),
    ("mbj_w", "baseline_margin3"),
    ("mbj_wf", "mbj_w"),
    ("mbj_star", "mbj_w"),
)
#: Data set, and <H, S>.
Place = tuple[str, tuple[int, int]]


def figures(results: str | Path, settings: Settings) -> dict[str, Callable[[Path], None]]:
    """Names of the page's figures, and what draws each into a file."""
    from benchmarks.retrieval.figures import draw_gains

    grouped = tables(_rows(results, settings), settings)
    return {
        f"retrieval-{dataset}.svg": partial(draw_gains, panels, TITLES.get(dataset, dataset))
        for dataset in settings.datasets
        if (panels := _panels(grouped, dataset))
    }


def page_text(results: str | Path, settings: Settings) -> str:
    """The whole page.

    Raises:
        ValueError: where there are no rows, or one was made with other settings.
    """
    rows = _rows(results, settings)
    parts = ["# Retrieval", _preface(results), paper_text()]
    grouped = tables(rows, settings)
    for dataset in settings.datasets:
        for (name, (num_head, tail_size)), table in grouped.items():
            if name != dataset:
                continue
            whole = all(row["identities"] == num_head for row in _flat(table))
            parts += [f"## {TITLES.get(dataset, dataset)}, " + _edition(num_head, tail_size, whole)]
            parts += [table_text(table, PAPER.get(dataset, {}), num_head), compared_text(table, MEASURE, COMPARED)]
            parts += [facts_text(table)] if any("memory" in row for row in _flat(table)) else []
        if _panels(grouped, dataset):
            parts.append(f"![gains](retrieval-{dataset}.svg)")
    command = "python tools/reproduce_retrieval.py --data datasets --group {}"
    parts += [methods_text(settings)]
    parts += [missing_text(settings, results, Cell, command.format), versions_text(rows, _editions(rows))]
    return "\n\n".join(filter(None, parts)) + "\n"


def _rows(results: str | Path, settings: Settings) -> list[dict[str, Any]]:
    return known_rows(results, Cell, settings, lambda cell: cell.dataset in settings.datasets)


def tables(rows: list[dict[str, Any]], settings: Settings) -> dict[Place, Table]:
    """Rows by (data set, (H, S)), then method in the order of the settings, then seed."""
    grouped: dict[Place, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        grouped[row["dataset"], (row["num_head"], row["tail_size"])].append(row)
    return {place: by_method(grouped[place], settings) for place in sorted(grouped)}


def _panels(grouped: dict[Place, Table], dataset: str) -> dict[str, Table]:
    """What there is to draw of a data set, by the title of its panel."""
    editions = {edition: table for (name, edition), table in grouped.items() if name == dataset}
    return {_edition(*edition): t for edition, t in editions.items() if "baseline" in t and len(t) > 1}


def paper_text() -> str:
    """The paper's Tables 2 and 3."""
    lines = []
    for dataset, methods in PAPER.items():
        for method, numbers in methods.items():
            cells = [" / ".join(f"{n:.1f}" for n in numbers.get(num_head, ())) for num_head in (20, 50, 100, 751)]
            lines += [[TITLES[dataset], f"`{method}`", *cells]] if method != "mbj_w_paper" else []
    head = ["mAP / Rank-1", "method", "<H20,S5>", "<H50,S5>", "<H100,S5>", "whole"]
    return "## What the paper says\n\n" + markdown(head, lines)


def _edition(num_head: int, tail_size: int, whole: bool = False) -> str:
    return f"<H{num_head},S{tail_size}>" + (", the whole set" if whole else "")


def _flat(table: Table) -> list[dict[str, Any]]:
    return [row for runs in table.values() for row in runs.values()]


def table_text(table: Table, paper: dict[str, dict[int, tuple[float, float]]], num_head: int) -> str:
    """The results of a table.

    Args:
        table: by method, then seed.
        paper: the paper's (mAP, Rank-1) by method and H, which stand beside ours; empty where it has none.
        num_head: H of the table.
    """

    def of_the_paper(place: int, method: str) -> str:
        numbers = paper.get(method, {}).get(num_head)
        return f"{numbers[place]:.1f}" if numbers else ""

    more = {"paper: mAP": partial(of_the_paper, 0), "Rank-1": partial(of_the_paper, 1)} if paper else {}
    return results_text(table, MEASURE, NUMBERS, ("baseline",), more)


def facts_text(table: Table) -> str:
    """What the memories hold at the end of a run, and how hard they pull: means over seeds."""
    columns = {
        "filled, %": lambda f: 100 * f["fill"],
        "tail with a row, %": lambda f: 100 * f["tail_covered"] if "tail_covered" in f else None,
        "rows a tail identity": lambda f: f.get("rows_per_tail"),
        "age, iterations": lambda f: f.get("age"),
        "angle to now, °": lambda f: f.get("to_now"),
        "angle between entries, °": lambda f: f.get("step"),
    }
    head = ["method", "memory", *columns, "L_batch", "eta L_memory", "gradient ratio", "cosine"]
    lines = []
    for method, runs in table.items():
        kinds = dict.fromkeys(kind for row in runs.values() for kind in row.get("memory", {}))
        for number, kind in enumerate(kinds):
            facts = [row["memory"][kind] for row in runs.values() if "memory" in row]
            values = [_mean([column(f) for f in facts], 2 if "°" in name else 1) for name, column in columns.items()]
            # Of the sum of both memories' losses: said once.
            pulls = [row["pull"] for row in runs.values() if "pull" in row and number == 0]
            names = ("loss_batch", "loss_memory", "gradient_ratio", "gradient_cosine")
            values += [_mean([p[name] for p in pulls], 2) for name in names]
            lines.append([f"`{method}`", kind, *values])
    return "What the memories hold after the last iteration:\n\n" + markdown(head, lines)


def _mean(values: list[float | None], digits: int) -> str:
    there = [value for value in values if value is not None]
    return f"{statistics.mean(there):.{digits}f}" if there else ""


def methods_text(settings: Settings) -> str:
    """What each name means."""
    lines = []
    for name, nodes in settings.methods.items():
        words = [f"{node}.{key} {value}" for node, values in nodes.items() for key, value in values.items()]
        lines.append([f"`{name}`", ", ".join(words) or "the recipe, without MBJ"])
    lines += [[f"`{name}`", str(retired)] for name, retired in settings.retired.items()]
    return "## What the names mean\n\n" + markdown(["method", "in MODEL"], lines)


def _preface(results: str | Path) -> str:
    name = Path(results).name
    return (
        f"Made by `python tools/reproduce_retrieval.py --report` from [{name}]({name}); do not edit. mAP, Rank-1 and "
        f"mINP in percent, by fast-reid's own evaluation of the model of the last epoch. {PAIRS} Training accuracy and "
        "loss are fast-reid's, over the last epoch, on augmented images; the loss is the total, where there is MBJ "
        "with eta L_memory."
    )


def _editions(rows: list[dict[str, Any]]) -> list[str]:
    sets = {(r["dataset"], r["num_head"], r["tail_size"], r["identities"], r["images"], r["iterations"]) for r in rows}
    return [f"{d} <H{h},S{s}>: {c} identities, {n} images, {i} iterations" for d, h, s, c, n, i in sorted(sets)]
