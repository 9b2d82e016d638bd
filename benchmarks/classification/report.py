"""The results page: tables, figures and what is missing, from the rows alone; the reading of them is a file beside."""

from __future__ import annotations

import dataclasses
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.cells import cell_of, paired, spread, write_section
from benchmarks.classification.runner import check_rows, finished_cells, read_rows
from benchmarks.classification.settings import Cell, Method, Protocol, Settings

# Error of the paper's Table 1, in percent: data set -> method -> by imbalance ratio 100, 50, 10.
PAPER = {
    "cifar10_lt": {
        "ce": (29.64, 25.19, 13.61),
        "focal": (29.62, 23.28, 13.34),
        "cb_focal": (25.43, 20.73, 12.90),
        "ldam_drw": (22.97, 18.97, 11.84),
        "mbj": (18.76, 13.31, 11.96),
    },
    "cifar100_lt": {
        "ce": (61.68, 56.15, 44.29),
        "focal": (61.59, 55.68, 44.22),
        "cb_focal": (60.40, 54.83, 42.01),
        "ldam_drw": (57.96, 53.38, 41.29),
        "mbj": (54.24, 47.44, 38.75),
    },
}
TITLES = {"cifar10_lt": "CIFAR-10-LT", "cifar100_lt": "CIFAR-100-LT"}
PROTOCOLS = {
    "paper": "the paper's recipe (ResNet-32, 200 epochs, full resolution)",
    "cpu": "the scaled CPU protocol",
}
NUMBERS = ("error", "head", "medium", "tail", "train_accuracy")
GPU_COMMAND = (
    "python tools/reproduce.py --data data --group {group} --device cuda --processes 4 --streams 4 --time-limit 540"
)
Table = dict[str, dict[int, dict[str, Any]]]
#: Protocol, precision, data set and ratio.
Place = tuple[str, str, str, int]


def paper_error(dataset: str, imbalance_ratio: int, name: str, method: Method) -> float | None:
    """The paper's number; its MBJ is any method with its values, whatever it takes where the paper is silent."""
    if dataclasses.replace(method, norm="sum", start="decay", ramp=0) == Method(memory="feature", eta=15):
        name = "mbj"
    elif method.memory is not None:
        return None
    ratios = (100, 50, 10)
    if name not in PAPER[dataset] or imbalance_ratio not in ratios:
        return None
    return PAPER[dataset][name][ratios.index(imbalance_ratio)]


def write_report(results: str | Path, page: str | Path, settings: Settings) -> None:
    """Write the page's section on classification, and its figures into a folder beside it that has the page's name.

    ``<folder>/reading.md``, where there is one, is its first part: what a person concludes from the tables.

    Raises:
        ValueError: where there are no rows, or one was made with other settings.
    """
    from benchmarks.classification.figures import draw_curves, draw_errors

    rows = read_rows(results)
    if not rows:
        raise ValueError(f"there are no rows in {results}: run some cells first")
    page = Path(page)
    folder = page.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    parts = ["# Classification", _preface(results)]
    if (folder / "reading.md").exists():
        parts.append((folder / "reading.md").read_text().strip())
    grouped = tables(rows, settings)
    shown = [row for table in grouped.values() for runs in table.values() for row in runs.values()]
    check_rows([cell_of(row, Cell) for row in shown], settings, results)
    for (protocol, precision, dataset, ratio), table in sorted(grouped.items(), key=_table_order):
        stem = f"{protocol}-{dataset}-{ratio}" + (f"-{precision}" if precision != "fp32" else "")
        title = f"{TITLES[dataset]}, rho {ratio}, {PROTOCOLS.get(protocol, protocol)}, {precision}"
        draw_errors(table, title, folder / f"{stem}-errors.svg")
        draw_curves(table, title, folder / f"{stem}-curves.svg")
        parts += [
            f"## {title}",
            table_text(table, settings, (dataset, ratio) if protocol == "paper" else None),
            f"![errors]({folder.name}/{stem}-errors.svg)",
            f"![curves]({folder.name}/{stem}-curves.svg)",
        ]
    parts += [methods_text(settings, rows), missing_text(settings, results), _versions(rows)]
    write_section(page, "classification", "\n\n".join(parts))


def tables(rows: list[dict[str, Any]], settings: Settings) -> dict[Place, Table]:
    """Rows by protocol, precision, data set and ratio, then method in the order of the settings, then seed."""
    grouped: dict[Place, Table] = defaultdict(lambda: defaultdict(dict))
    order = list(settings.methods)
    known = [row for row in rows if row["method"] in order and row["protocol"] in settings.protocols]
    for row in sorted(known, key=lambda row: (order.index(row["method"]), row["seed"])):
        place = row["protocol"], row["precision"], row["dataset"], row["imbalance_ratio"]
        grouped[place][row["method"]][row["seed"]] = row
    return grouped


def _table_order(item: Any) -> Any:
    protocol, precision, dataset, ratio = item[0]
    return protocol != "paper", precision != "fp32", list(TITLES).index(dataset), -ratio


def table_text(table: Table, settings: Settings, paper: tuple[str, int] | None = None) -> str:
    """Mean and standard deviation over seeds, and paired differences to the two baselines.

    Args:
        table: by method, then seed.
        settings: what the methods are.
        paper: data set and ratio, where the paper's numbers belong beside ours.
    """
    head = ["method", "seeds", "error", "head", "medium", "tail", "train acc.", "− `ce`", "− `balanced_softmax`"]
    head += ["paper"] if paper else []
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    best = min(statistics.mean(row["error"] for row in runs.values()) for runs in table.values())
    for method, runs in table.items():
        numbers = [spread([row[name] for row in runs.values()]) for name in NUMBERS]
        if statistics.mean(row["error"] for row in runs.values()) == best:
            numbers[0] = f"**{numbers[0]}**"
        pairs = [_pair(table, method, other) for other in ("ce", "balanced_softmax")]
        values = [f"`{method}`", str(len(runs)), *numbers, *pairs]
        if paper:
            number = paper_error(*paper, method, settings.methods[method])
            values.append(f"{number:.2f}" if number else "")
        lines.append("| " + " | ".join(values) + " |")
    return "\n".join(lines)


def _pair(table: Table, method: str, other: str) -> str:
    if method == other or other not in table:
        return ""
    ours, theirs = ({seed: row["error"] for seed, row in table[name].items()} for name in (method, other))
    return paired(ours, theirs, lower_is_better=True)


def describe(method: Method) -> str:
    """A method in words."""
    if method.after is not None:
        after = f"after the training with `{method.loss}`: {method.after.replace('_', ' ')}"
        return after if method.after == "nearest_class_mean" else f"{after}, tau {method.tau:g}"
    own_loss = method.classifier_loss or method.loss
    own = f"a classifier of its own on the features of `{method.loss}`, trained by `{own_loss}`"
    if method.memory is None:
        return own if method.classifier_loss else f"`{method.loss}` alone"
    eta = method.eta if method.eta is not None else "default (15 for features, 1/7 for prototypes)"
    loss = own if method.classifier == "own" and method.memory != "prototype" else f"`{method.loss}`"
    words = [f"{loss} + {method.memory} memory", f"eta {eta}", f"beta {method.beta}", f"norm {method.norm}"]
    words.append("from the first decay" if method.start == "decay" else f"from epoch {method.start}")
    words += [f"{method.size} slots"] if method.size else []
    words += [f"{method.sample} rows drawn for each step"] if method.sample else []
    words += [f"ramp of {method.ramp} epochs"] if method.ramp else []
    return ", ".join(words + (["prior-corrected"] if method.prior_correction else []))


def methods_text(settings: Settings, rows: list[dict[str, Any]]) -> str:
    """What each name means, and the protocols."""
    lines = ["## What the names mean", "", "| method | |", "|---|---|"]
    lines += [f"| `{name}` | {describe(method)} |" for name, method in settings.methods.items()]
    for name in sorted({row["protocol"] for row in rows} & settings.protocols.keys()):
        lines += ["", describe_protocol(name, settings.protocols[name])]
    return "\n".join(lines)


def describe_protocol(name: str, p: Protocol) -> str:
    """A protocol in words."""
    words = [
        f"Protocol `{name}`: ResNet-{p.depth} of width {p.width}, {p.epochs} epochs, batch {p.batch_size}",
        f"SGD with momentum {p.momentum}, weight decay {p.weight_decay} on every parameter",
        f"learning rate {p.lr} after {p.warmup_epochs} epochs of linear warm-up, times {p.decay_rate} at epochs "
        + " and ".join(str(m) for m in p.milestones),
        f"pad-{p.padding} crop and flip",
    ]
    words += [f"blocks of {p.shrink} x {p.shrink} pixels averaged into one"] if p.shrink > 1 else []
    if p.max_count:
        words.append("largest class " + ", ".join(f"{n} images ({TITLES[d]})" for d, n in p.max_count.items()))
    return "; ".join(words) + ". The model of the last epoch is tested."


def missing_text(settings: Settings, results: str | Path) -> str:
    """Cells of the named groups without a row, the paper's number beside, and the commands that remain."""
    finished, done = finished_cells(results), {}
    lines = ["## What is missing", ""]
    for name in settings.groups:
        cells = settings.group(name)
        if missing := [cell for cell in cells if cell not in finished]:
            done[name] = missing
    if not done:
        return "\n".join([*lines, "Nothing: every cell of the named groups has a row."])
    lines += ["| data set | rho | protocol | method | seeds missing | paper | ours |", "|---|---|---|---|---|---|---|"]
    seeds: dict[Cell, list[int]] = defaultdict(list)
    for cell in dict.fromkeys(cell for missing in done.values() for cell in missing):
        seeds[dataclasses.replace(cell, seed=-1)].append(cell.seed)
    for cell, missing_seeds in seeds.items():
        paper = None
        if cell.protocol == "paper":
            paper = paper_error(cell.dataset, cell.imbalance_ratio, cell.method, settings.methods[cell.method])
        protocol = cell.protocol if cell.precision == "fp32" else f"{cell.protocol}, {cell.precision}"
        values = [TITLES[cell.dataset], cell.imbalance_ratio, protocol, f"`{cell.method}`"]
        values += [", ".join(map(str, missing_seeds)), f"{paper:.2f}" if paper else "", "missing"]
        lines.append("| " + " | ".join(map(str, values)) + " |")
    lines += ["", "Commands that run what is left (repeat until nothing is; finished cells are skipped):", "", "```sh"]
    for name in done:
        cpu = settings.groups[name]["protocol"] == "cpu"
        command = GPU_COMMAND.format(group=name)
        lines.append(f"python tools/reproduce.py --data data --group {name}" if cpu else command)
    return "\n".join([*lines, "```"])


def _preface(results: str | Path) -> str:
    name = Path(results).name
    return (
        f"Made by `python tools/reproduce.py --report` from [{name}](results/{name}); do not edit. Errors in percent "
        "on the whole, balanced test set after the last epoch. head / medium / tail are the first 20 %, the next "
        "20 % and the last 60 % of the classes by number of training images. ± after a mean is the standard "
        "deviation over seeds; ± after a difference is the standard error of the mean of the paired differences "
        "(same seed = same initial weights, same batches, same crops), and (k/n) says in how many of n pairs the "
        "error is lower. Choices between methods are made on CIFAR-10-LT, rho 100, only, and on its test set, as "
        "the field does: read differences of a point between many methods with that in mind."
    )


def _versions(rows: list[dict[str, Any]]) -> str:
    lines = ["## Versions and devices", ""]
    stacks = {(row["device"], *(f"{k} {v}" for k, v in sorted(row["versions"].items()))) for row in rows}
    lines += [f"- {', '.join(stack)}" for stack in sorted(stacks)]
    draws = {
        (row["protocol"], row["dataset"], row["imbalance_ratio"], row["data"]["sha256"][:12], sum(row["class_counts"]))
        for row in rows
    }
    lines += [f"- images of {d} rho {r}, protocol {p}: {n} in training, SHA-256 {s}" for p, d, r, s, n in sorted(draws)]
    return "\n".join(lines)
