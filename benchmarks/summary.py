"""The first table of docs/results.md: for each setting the baseline, MBJ, the best without and the best with MBJ."""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.tables import Table, column, markdown, pair, spread

BEGIN, END = "<!-- begin summary -->", "<!-- end summary -->"
NOT_MEASURED = "not measured"


@dataclasses.dataclass(frozen=True)
class Setting:
    """One line of the table.

    Args:
        title: of the line.
        rows: file of the rows in docs/results, without its ending.
        where: what its rows hold, field to value; a tuple names several values, of which the first with rows counts.
        baseline: method.
        free: methods without a memory.
        mbj: method.
        with_mbj: methods with MBJ, that one among them.
        number: of a row, an error or a score.
        lower_is_better: False for a score.
    """

    title: str
    rows: str
    where: Mapping[str, Any]
    baseline: str
    free: tuple[str, ...]
    mbj: str
    with_mbj: tuple[str, ...]
    number: str = "error"
    lower_is_better: bool = True


_AFTER = ("logit_adjusted", "logit_adjusted_tau1.5", "tau_normalized", "tau_normalized_tau2", "nearest_class_mean")
_FREE = (*_AFTER, "balanced_softmax_own", "balanced_softmax")
_WITH = ("mbj", "mbj_beta1", "mbj_size5000", "mbj_size5000_beta1", "balanced_softmax_own_mbj", "balanced_softmax_mbj")
_PROTOTYPES = ("mbj_w", "mbj_w_sum_eta3", "mbj_wf", "mbj_star", "mbj_w_positives")


def _cifar(dataset: str, title: str) -> list[Setting]:
    paper = {"dataset": dataset, "protocol": "paper", "imbalance_ratio": 100, "precision": ("amp", "bf16")}
    tuned = {"dataset": dataset, "test": "test"}
    free = ("logit_adjusted", "logit_adjusted_chosen", "balanced_softmax")
    return [
        Setting(f"{title}, the paper's training", "classification", paper, "ce", _FREE, "mbj", _WITH),
        Setting(f"{title}, pretrained, fine-tuned", "finetune", tuned, "ce", free, "mbj", ("mbj", "balanced")),
    ]


def _omniglot(dataset: str | tuple[str, ...], tail_size: int, title: str) -> Setting:
    where = {"dataset": dataset, "num_head": 20, "tail_size": tail_size}
    title = f"Omniglot <H20,S{tail_size}>, {title}, mAP"
    free = ("baseline_margin3", "mbj_w_now_margin46")
    return Setting(title, "retrieval", where, "baseline", free, "mbj_w", _PROTOTYPES, "mAP", False)


_ten, _hundred = _cifar("cifar10_lt", "CIFAR-10-LT"), _cifar("cifar100_lt", "CIFAR-100-LT")
SETTINGS = (
    Setting("digits", "digits", {}, "ce", ("logit_adjusted", "balanced_softmax"), "mbj", ("mbj", "balanced")),
    _ten[0],
    _hundred[0],
    _ten[1],
    _hundred[1],
    *(_omniglot("omniglot", size, "from scratch") for size in (5, 2)),
    *(_omniglot(("omniglot_timm", "omniglot_timm_short"), size, "pretrained") for size in (5, 2)),
)


def write_summary(folder: Path) -> None:
    """Put the table between its marks in the results.md above the folder of the rows, where there is one."""
    page = folder.parent / "results.md"
    if page.exists():
        page.write_text(with_summary(page.read_text(), folder))


def with_summary(text: str, folder: Path) -> str:
    """A page with the table of today between its marks."""
    table = f"{BEGIN}\n{summary_text(folder)}\n{END}"
    return re.sub(f"{BEGIN}.*?{END}", lambda _: table, text, flags=re.DOTALL)


def summary_text(folder: Path) -> str:
    """The table, of the rows in a folder."""
    head = ["", "baseline", "best without a memory", "MBJ", "best with MBJ"]
    return markdown(head, [_line(setting, _table(setting, folder)) for setting in SETTINGS])


def _table(setting: Setting, folder: Path) -> Table:
    """The setting's rows by method and seed."""
    path = folder / f"{setting.rows}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    rows = [row for row in rows if not row.get("draw")]
    for key, wanted in setting.where.items():
        values = wanted if isinstance(wanted, tuple) else (wanted,)
        there = [value for value in values if any(row[key] == value for row in rows)]
        rows = [row for row in rows if there and row[key] == there[0]]
    table: Table = {}
    for row in rows:
        table.setdefault(row["method"], {})[row["seed"]] = row
    return table


def _line(setting: Setting, table: Table) -> list[str]:
    best = [_best(setting, table, names) for names in (setting.free, (setting.mbj,), setting.with_mbj)]
    baseline = table.get(setting.baseline)
    return [setting.title, spread(_values(setting, baseline)) if baseline else NOT_MEASURED, *best]


def _values(setting: Setting, runs: dict[int, dict[str, Any]]) -> list[float]:
    return [value for _, value in sorted(column(runs, setting.number).items())]


def _best(setting: Setting, table: Table, names: tuple[str, ...]) -> str:
    """Name, value and difference of the best method, among those with the most seeds."""
    there = [name for name in names if name in table]
    if not there:
        return NOT_MEASURED
    most = max(len(table[name]) for name in there)
    there = [name for name in there if len(table[name]) == most]
    choose = min if setting.lower_is_better else max
    name = choose(there, key=lambda name: statistics.mean(_values(setting, table[name])))
    digits = 1 if setting.lower_is_better else 2
    difference = pair(table, name, setting.baseline, setting.number, setting.lower_is_better, digits)
    text = (
        f"{spread(_values(setting, table[name]))}; {difference}"
        if difference
        else spread(_values(setting, table[name]))
    )
    return f"`{name}` {text}" if len(names) > 1 else text
