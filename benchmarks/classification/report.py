"""The page docs/results/classification.md: tables, figures and what is missing, from the rows alone."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.classification.settings import Cell, Method, Protocol, Settings
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

# Error of the paper's Table 1, in percent: data set -> method -> by imbalance ratio 100, 50, 10.
PAPER = {
    "cifar10_lt": {
        "ce": (29.64, 25.19, 13.61),
        "focal": (29.62, 23.28, 13.34),
        "cb_focal": (25.43, 20.73, 12.90),
        "ldam_drw": (22.97, 18.97, 11.84),
        "bbn": (20.18, 17.82, 11.68),
        "mbj": (18.76, 13.31, 11.96),
    },
    "cifar100_lt": {
        "ce": (61.68, 56.15, 44.29),
        "focal": (61.59, 55.68, 44.22),
        "cb_focal": (60.40, 54.83, 42.01),
        "ldam_drw": (57.96, 53.38, 41.29),
        "bbn": (57.44, 52.98, 40.88),
        "mbj": (54.24, 47.44, 38.75),
    },
}
RATIOS = (100, 50, 10)
# Head, medium and tail error of the paper's Table 4, at a ratio of 100.
PAPER_GROUPS = {
    "cifar10_lt": {"ce": (4.50, 26.79, 38.96), "mbj": (7.55, 27.50, 19.58)},
    "cifar100_lt": {"ce": (25.80, 43.50, 79.70), "mbj": (32.00, 47.05, 64.05)},
}
TITLES = {"cifar10_lt": "CIFAR-10-LT", "cifar100_lt": "CIFAR-100-LT"}
PROTOCOLS = {
    "paper": "the paper's recipe (ResNet-32, 200 epochs, full resolution)",
    "cpu": "the scaled CPU protocol",
}
NOTES = {
    "mbj_paper": ": the paper's numbers, on a second classification layer",
    "mbj_shared_paper": ": the paper to the letter, which has one classification layer",
}
MEASURE: Measure = ("error", True, 1)
NUMBERS = {name: name for name in ("error", "head", "medium", "tail")} | {"train_accuracy": "train acc."}
# Every table has the paired differences to these.
BASELINES = ("ce", "balanced_softmax", "mbj")
# Of two methods, neither one of them.
COMPARED = (
    ("balanced_softmax_own_mbj", "balanced_softmax_own"),
    ("balanced_softmax_own_mbj_beta1", "balanced_softmax_own"),
    ("mbj_wf", "mbj_sum"),
    ("mbj_wf", "mbj_wf_memory"),
)
PRECISIONS = {"bf16": "bf16, logits and errors too", "amp": "bf16 before the classifier"}
#: Protocol, precision, data set, ratio, and whether each seed has a draw of its own.
Place = tuple[str, str, str, int, bool]


def paper_error(dataset: str, imbalance_ratio: int, name: str, method: Method) -> float | None:
    """The paper's number; its MBJ is any method with its values, whatever it takes where the paper is silent."""
    if dataclasses.replace(method, norm="sum", start="decay", classifier="own") == Method(memory="feature", eta=15):
        name = "mbj"
    elif method.memory is not None:
        return None
    if name not in PAPER[dataset] or imbalance_ratio not in RATIOS:
        return None
    return PAPER[dataset][name][RATIOS.index(imbalance_ratio)]


def figures(results: str | Path, settings: Settings) -> dict[str, Callable[[Path], None]]:
    """Names of the page's figures, and what draws each into a file."""
    from benchmarks.classification.figures import draw_curves, draw_errors

    found: dict[str, Callable[[Path], None]] = {}
    for place, table in tables(_rows(results, settings), settings).items():
        found[f"{_stem(place)}-errors.svg"] = partial(draw_errors, table, _title(place))
        found[f"{_stem(place)}-curves.svg"] = partial(draw_curves, table, _title(place))
    return found


def page_text(results: str | Path, settings: Settings) -> str:
    """The whole page.

    Raises:
        ValueError: where there are no rows, or one was made with other settings.
    """
    rows = _rows(results, settings)
    parts = ["# Classification", _preface(results), paper_text()]
    for place, table in tables(rows, settings).items():
        protocol, _, dataset, ratio, _ = place
        parts += [
            f"## {_title(place)}",
            table_text(table, settings, (dataset, ratio) if protocol == "paper" else None),
            compared_text(table, MEASURE, COMPARED),
            f"![errors]({_stem(place)}-errors.svg)",
            f"![curves]({_stem(place)}-curves.svg)",
        ]
    parts += [
        methods_text(settings, rows),
        missing_text(settings, results, Cell, lambda group: _command(group, settings)),
    ]
    parts += [versions_text(rows, _images(rows))]
    return "\n\n".join(filter(None, parts)) + "\n"


def _rows(results: str | Path, settings: Settings) -> list[dict[str, Any]]:
    return known_rows(results, Cell, settings, lambda cell: cell.protocol in settings.protocols)


def tables(rows: list[dict[str, Any]], settings: Settings) -> dict[Place, Table]:
    """Rows by place, the paper's protocol and fp32 first, then method and seed. Draw 0 is every seed's of one draw, and
    seed 0's of own draws."""
    grouped: dict[Place, list[dict[str, Any]]] = defaultdict(list)
    place = lambda row: (row["protocol"], row["precision"], row["dataset"], row["imbalance_ratio"])  # noqa: E731
    own = {(place(row), row["method"]) for row in rows if row.get("draw")}
    for row in rows:
        if not row.get("draw"):
            grouped[(*place(row), False)].append(row)
        if row.get("draw", 0) == row["seed"] and (place(row), row["method"]) in own:
            grouped[(*place(row), True)].append(row)
    return {place: by_method(grouped[place], settings) for place in sorted(grouped, key=_place_order)}


def _place_order(place: Place) -> Any:
    protocol, precision, dataset, ratio, own = place
    return protocol != "paper", precision != "fp32", precision, list(TITLES).index(dataset), -ratio, not own


def _title(place: Place) -> str:
    protocol, precision, dataset, ratio, own = place
    draws = "a draw of the images for each seed" if own else "one draw of the images"
    title = f"{TITLES[dataset]}, rho {ratio}, {PROTOCOLS.get(protocol, protocol)}"
    return f"{title}, {PRECISIONS.get(precision, precision)}, {draws}"


def _stem(place: Place) -> str:
    protocol, precision, dataset, ratio, own = place
    stem = f"{protocol}-{dataset}-{ratio}" + (f"-{precision}" if precision != "fp32" else "")
    return f"{stem}-draws" if own else stem


def paper_text() -> str:
    """The paper's Tables 1 and 4."""
    head = ["data set", "method", *(f"rho {ratio}" for ratio in RATIOS), "head / medium / tail, rho 100"]
    lines = []
    for dataset, errors in PAPER.items():
        for method, numbers in errors.items():
            groups = PAPER_GROUPS[dataset].get(method, ())
            by_group = " / ".join(f"{number:.2f}" for number in groups)
            lines.append([TITLES[dataset], f"`{method}`", *(f"{number:.2f}" for number in numbers), by_group])
    return "## What the paper says\n\n" + markdown(head, lines)


def table_text(table: Table, settings: Settings, paper: tuple[str, int] | None = None) -> str:
    """The results of a table.

    Args:
        table: by method, then seed.
        settings: what the methods are.
        paper: data set and ratio, where the paper's numbers belong beside ours.
    """

    def of_the_paper(name: str) -> str:
        method = settings.methods.get(name)
        number = paper_error(*paper, name, method) if paper and method else None
        return f"{number:.2f}" if number else ""

    def mark(name: str) -> str:
        """‡ where a row is of before what a run goes on from had the batch classifier."""
        method = settings.methods.get(name)
        two = method is not None and method.memory == "both" and method.classifier == "own"
        return "‡" if two and any("resumed" not in row for row in table[name].values()) else ""

    return results_text(table, MEASURE, NUMBERS, BASELINES, {"paper": of_the_paper} if paper else {}, mark)


def describe(method: Method) -> str:
    """A method in words."""
    if method.after is not None:
        after = f"after the training with `{method.loss}`: {method.after.replace('_', ' ')}"
        return after if method.after == "nearest_class_mean" else f"{after}, tau {method.tau:g}"
    own_loss = method.classifier_loss or method.loss
    own = f"a classifier of its own on the features of `{method.loss}`, trained by `{own_loss}`"
    if method.memory is None:
        drawn = f", {method.sampler} draws of the images" if method.sampler else ""
        return own if method.classifier_loss else f"`{method.loss}` alone{drawn}"
    eta = method.eta if method.eta is not None else "default (15 for features, 1/7 for prototypes)"
    loss = own if method.classifier == "own" and method.memory != "prototype" else f"`{method.loss}`"
    words = [f"{loss} + {method.memory} memory", f"eta {eta}", f"beta {method.beta}", f"norm {method.norm}"]
    words.append("from the first decay" if method.start == "decay" else f"from epoch {method.start}")
    words += [f"{method.size} slots"] if method.size else []
    words += [f"{method.sample} rows drawn for each step"] if method.sample else []
    return ", ".join(words)


def methods_text(settings: Settings, rows: list[dict[str, Any]]) -> str:
    """What each name means, and the protocols."""
    lines = ["## What the names mean", "", "| method | |", "|---|---|"]
    lines += [f"| `{name}` | {describe(method)}{NOTES.get(name, '')} |" for name, method in settings.methods.items()]
    lines += [f"| `{name}` | {retired} |" for name, retired in settings.retired.items()]
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
    words += ["AutoAugment and Cutout"] if p.augment == "autoaugment" else []
    words += [f"Mixup of alpha {p.mixup:g}"] if p.mixup else []
    words += [f"blocks of {p.shrink} x {p.shrink} pixels averaged into one"] if p.shrink > 1 else []
    if p.max_count:
        words.append("largest class " + ", ".join(f"{n} images ({TITLES[d]})" for d, n in p.max_count.items()))
    return "; ".join(words) + ". The model of the last epoch is tested."


def _command(group: str, settings: Settings) -> str:
    command = f"python tools/reproduce.py --data data --group {group}"
    gpu = " --device cuda --processes 4 --streams 4 --time-limit 540"  # repeated until nothing is left
    return command if settings.groups[group]["protocol"] == "cpu" else command + gpu


def _preface(results: str | Path) -> str:
    name = Path(results).name
    return (
        f"Made by `python tools/reproduce.py --report` from [{name}]({name}); do not edit. Errors in percent on the "
        "whole, balanced test set after the last epoch. head / medium / tail are the first 20 %, the next 20 % and the "
        "last 60 % of the classes by number of training images. Under bf16, 2.7 to 8.3 % of the test images have two "
        "equal logits, and the class with more training images wins; every other precision has fp32 logits. If all "
        "seeds of a row use the same images, ± includes only the training; otherwise it includes the choice of images "
        f"too. {PAIRS} ‡ marks runs in which a resume may have replaced the batch classifier by the memory classifier. "
        "Choices between methods are made only on CIFAR-10-LT, rho 100, and on its test set, as the field does, so "
        "do not trust differences of a point between many methods. Table 3 and Fig. 4 of the paper were measured at "
        "the small scale (`cpu`) alone."
    )


def _images(rows: list[dict[str, Any]]) -> list[str]:
    draws = {
        (row["protocol"], row["dataset"], row["imbalance_ratio"], row["data"]["sha256"][:12], sum(row["class_counts"]))
        for row in rows
    }
    return [f"images of {d} rho {r}, protocol {p}: {n} in training, SHA-256 {s}" for p, d, r, s, n in sorted(draws)]
