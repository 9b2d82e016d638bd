"""The retrieval section of the results page, from the rows alone; the reading of them is a file beside."""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks import cells as results
from benchmarks.cells import cell_of, paired, spread, write_section
from benchmarks.retrieval.figures import Table, comparable, draw_gains
from benchmarks.retrieval.runner import check_rows, finished_cells, read_rows
from benchmarks.retrieval.settings import Cell, Settings

TITLES = {
    "omniglot": "Omniglot",
    "omniglot_val": "Omniglot, validation alphabets (where choices are made)",
    "omniglot_short": "Omniglot, short recipe",
    "omniglot_short_val": "Omniglot, short recipe, validation alphabets",
    "omniglot_r50": "Omniglot, ResNet-50",
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
NUMBERS = ("mAP", "rank1", "mINP", "train_accuracy", "train_loss")
# Fig. 4: the arms of both tasks. Those of classification all have the paper's norm.
ABLATION = {"baseline": "ce", "MBJ-F": "mbj_sum", "MBJ-W": "mbj_w", "MBJ-WF": "mbj_wf"}
# Of two methods, neither the baseline: what the reading says of them.
COMPARED = (
    ("mbj_w_max_eta3", "mbj_w_now_val_margin46"),
    ("mbj_w_sum_eta3", "mbj_w_now_val_margin46"),
    ("mbj_w_sum_eta3", "mbj_w_max_eta3"),
    ("mbj_w_sum_eta3", "mbj_w"),
    ("mbj_w", "baseline_margin3"),
    ("mbj_wf", "mbj_w"),
    ("mbj_star", "mbj_w"),
)
RETRIEVAL_ARMS = {"baseline": "baseline", "MBJ-F": "mbj_f", "MBJ-W": "mbj_w", "MBJ-WF": "mbj_wf"}


def write_report(path: str | Path, page: str | Path, settings: Settings) -> None:
    """Write the page's section on retrieval, and its figures into a folder beside it that has the page's name.

    ``<folder>/reading_retrieval.md``, where there is one, is its first part: what a person concludes from the tables.
    The ablation takes the rows of classification from ``<folder>/classification.jsonl``.

    Raises:
        ValueError: where there are no rows, or one was made with other settings.
    """
    rows = read_rows(path)
    if not rows:
        raise ValueError(f"there are no rows in {path}: run some cells first")
    folder = Path(page).with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    parts = ["# Retrieval", _preface(path)]
    if (folder / "reading_retrieval.md").exists():
        parts.append((folder / "reading_retrieval.md").read_text().strip())
    grouped = tables(rows, settings)
    check_rows([cell_of(row, Cell) for table in grouped.values() for row in _flat(table)], settings, path)
    for dataset in settings.datasets:
        editions = {edition: table for (name, edition), table in grouped.items() if name == dataset}
        for (num_head, tail_size), table in sorted(editions.items()):
            whole = all(row["identities"] == num_head for row in _flat(table))
            parts += [f"## {TITLES.get(dataset, dataset)}, " + _edition(num_head, tail_size, whole)]
            parts += [table_text(table, PAPER.get(dataset, {}), num_head)]
            parts += [facts_text(table)] if any("memory" in row for row in _flat(table)) else []
        panels = {_edition(h, s): t for (h, s), t in sorted(editions.items()) if "baseline" in t and len(t) > 1}
        if panels:
            draw_gains(panels, TITLES.get(dataset, dataset), folder / f"retrieval-{dataset}.svg")
            parts.append(f"![gains]({folder.name}/retrieval-{dataset}.svg)")
    parts += [compared_text(grouped), ablation_text(grouped, folder / "classification.jsonl"), methods_text(settings)]
    parts += [missing_text(settings, path), _versions(rows)]
    write_section(page, "retrieval", "\n\n".join(filter(None, parts)))


def tables(rows: list[dict[str, Any]], settings: Settings) -> dict[tuple[str, tuple[int, int]], Table]:
    """Rows by (data set, (H, S)), then method in the order of the settings, then seed."""
    grouped: dict[tuple[str, tuple[int, int]], Table] = defaultdict(lambda: defaultdict(dict))
    order = list(settings.methods)
    known = [row for row in rows if row["method"] in order and row["dataset"] in settings.datasets]
    for row in sorted(known, key=lambda row: (order.index(row["method"]), row["seed"])):
        grouped[row["dataset"], (row["num_head"], row["tail_size"])][row["method"]][row["seed"]] = row
    return grouped


def _edition(num_head: int, tail_size: int, whole: bool = False) -> str:
    return f"<H{num_head},S{tail_size}>" + (", the whole set" if whole else "")


def _flat(table: Table) -> list[dict[str, Any]]:
    return [row for runs in table.values() for row in runs.values()]


def _column(runs: dict[int, dict[str, Any]], name: str) -> dict[int, float]:
    return {seed: row[name] for seed, row in runs.items()}


def table_text(table: Table, paper: dict[str, dict[int, tuple[float, float]]], num_head: int) -> str:
    """Mean and standard deviation over seeds, and the paired difference of mAP to the baseline.

    Args:
        table: by method, then seed.
        paper: the paper's (mAP, Rank-1) by method and H, which stand beside ours; empty where it has none.
        num_head: H of the table.
    """
    head = ["method", "seeds", "mAP", "Rank-1", "mINP", "train acc.", "train loss", "mAP − `baseline`"]
    head += ["paper: mAP", "Rank-1"] if paper else []
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    most = max(len(runs) for runs in table.values())
    best = max(statistics.mean(_column(runs, "mAP").values()) for runs in table.values() if len(runs) == most)
    for method, runs in table.items():
        numbers = [spread(list(_column(runs, name).values())) for name in NUMBERS]
        if len(runs) == most and statistics.mean(_column(runs, "mAP").values()) == best:
            numbers[0] = f"**{numbers[0]}**"
        pair = ""
        if method != "baseline":
            pair = _pair(table, method, "baseline")
        values = [f"`{method}`", str(len(runs)), *numbers, pair]
        if paper:
            values += [f"{n:.1f}" for n in paper.get(method, {}).get(num_head, ())] or ["", ""]
        lines.append("| " + " | ".join(values) + " |")
    return "\n".join(lines)


def _pair(table: Table, method: str, other: str) -> str:
    runs = table.get(method, {})
    theirs = comparable(runs, table.get(other, {}))
    return paired(_column(runs, "mAP"), _column(theirs, "mAP"), lower_is_better=False, digits=2)


def compared_text(grouped: dict[tuple[str, tuple[int, int]], Table]) -> str:
    """Paired differences of mAP between methods, where both have rows."""
    lines = ["## One method beside another", "", "| data set | methods | mAP |", "|---|---|---|"]
    for (dataset, edition), table in sorted(grouped.items()):
        for method, other in COMPARED:
            if pair := _pair(table, method, other):
                title = f"{TITLES.get(dataset, dataset)} {_edition(*edition)}"
                lines.append(f"| {title} | `{method}` − `{other}` | {pair} |")
    return "\n".join(lines) if len(lines) > 4 else ""


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
    lines = ["What the memories hold after the last iteration:", ""]
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for method, runs in table.items():
        kinds = dict.fromkeys(kind for row in runs.values() for kind in row.get("memory", {}))
        for number, kind in enumerate(kinds):
            facts = [row["memory"][kind] for row in runs.values() if "memory" in row]
            values = [_mean([column(f) for f in facts], 2 if "°" in name else 1) for name, column in columns.items()]
            # Of the sum of both memories' losses: said once.
            pulls = [row["pull"] for row in runs.values() if "pull" in row and number == 0]
            names = ("loss_batch", "loss_memory", "gradient_ratio", "gradient_cosine")
            values += [_mean([p[name] for p in pulls], 2) for name in names]
            lines.append("| " + " | ".join([f"`{method}`", kind, *values]) + " |")
    return "\n".join(lines)


def _mean(values: list[float | None], digits: int) -> str:
    there = [value for value in values if value is not None]
    return f"{statistics.mean(there):.{digits}f}" if there else ""


def ablation_text(grouped: dict[tuple[str, tuple[int, int]], Table], classification: Path) -> str:
    """The paper's Fig. 4: features, prototypes or both, on both tasks."""
    lines = ["## What is remembered (Fig. 4)", "", "| task | " + " | ".join(ABLATION) + " |", "|---|---|---|---|---|"]
    rows = results.read_rows(classification, ("dataset", "imbalance_ratio", "protocol", "method", "error"))
    for protocol in sorted({row["protocol"] for row in rows}):
        cells = [
            [r["error"] for r in rows if (r["dataset"], r["imbalance_ratio"], r["protocol"], r["method"]) == key]
            for key in (("cifar10_lt", 100, protocol, method) for method in ABLATION.values())
        ]
        lines.append(f"| CIFAR-10-LT, rho 100, protocol `{protocol}`: error | {_cells(cells)} |")
    for (dataset, (num_head, tail_size)), table in sorted(grouped.items()):
        if not dataset.endswith("_val"):
            cells = [list(_column(table.get(m, {}), "mAP").values()) for m in RETRIEVAL_ARMS.values()]
            lines.append(f"| {TITLES.get(dataset, dataset)} {_edition(num_head, tail_size)}: mAP | {_cells(cells)} |")
    return "\n".join(lines)


def _cells(cells: list[list[float]]) -> str:
    return " | ".join(f"{spread(values)} (n = {len(values)})" if values else "missing" for values in cells)


def methods_text(settings: Settings) -> str:
    """What each name means."""
    lines = ["## What the retrieval names mean", "", "| method | in MODEL |", "|---|---|"]
    for name, nodes in settings.methods.items():
        words = [f"{node}.{key} {value}" for node, values in nodes.items() for key, value in values.items()]
        lines.append(f"| `{name}` | {', '.join(words) or 'the recipe, without MBJ'} |")
    return "\n".join(lines)


def missing_text(settings: Settings, path: str | Path) -> str:
    """Cells of the named groups without a row, and the commands that remain."""
    finished = finished_cells(path)
    missing = {name: [c for c in settings.group(name) if c not in finished] for name in settings.groups}
    missing = {name: cells for name, cells in missing.items() if cells}
    if not missing:
        return ""
    lines = ["## What is missing in retrieval", ""]
    for name, cells in missing.items():
        lines.append(f"- group `{name}`: {len(cells)} of {len(settings.group(name))} cells have no row")
    lines += ["", "Commands that run what is left (finished cells are skipped):", "", "```sh"]
    lines += [f"python tools/reproduce_retrieval.py --data datasets --group {name}" for name in missing]
    return "\n".join([*lines, "```"])


def _preface(path: str | Path) -> str:
    name = Path(path).name
    return (
        f"Made by `python tools/reproduce_retrieval.py --report` from [{name}](results/{name}); do not edit. mAP, "
        "Rank-1 and mINP in percent, by fast-reid's own evaluation of the model of the last epoch. ± after a mean is "
        "the standard deviation over seeds; ± after a difference is the standard error of the mean of the paired "
        "differences (same seed = same initial weights, same batches, same crops), and (k/n) says in how many of n "
        "pairs mAP is higher. Training accuracy and loss are fast-reid's, over the last epoch, on augmented images; "
        "the loss is the total, where there is MBJ with eta L_memory."
    )


def _versions(rows: list[dict[str, Any]]) -> str:
    stacks = {(row["device"], *(f"{k} {v}" for k, v in sorted(row["versions"].items()))) for row in rows}
    sets = {(r["dataset"], r["num_head"], r["tail_size"], r["identities"], r["images"], r["iterations"]) for r in rows}
    lines = ["## Versions and data of retrieval", ""]
    lines += [f"- {', '.join(stack)}" for stack in sorted(stacks)]
    lines += [f"- {d} <H{h},S{s}>: {c} identities, {n} images, {i} iterations" for d, h, s, c, n, i in sorted(sets)]
    return "\n".join(lines)
