"""What a reader wants to know first: the tables of errors and scores with differences, and the verdict in words."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from mbj_plugin.longtail import GROUPS, SHOTS
from mbj_plugin.tools.report.page import Section, Table
from mbj_plugin.tools.report.run import RunRecord
from mbj_plugin.tools.trainer.error_table import Errors, difference, error_rows, mean_and_spread, paired

# What two runs may differ in and still be two seeds of one.
OF_A_SEED = ("seed", "output", "experiment", "mbj_seed", "resume", "local_rank", "rank", "progress", "compare", "seeds")


def headline(runs: list[RunRecord]) -> tuple[list[str], Section]:
    """The verdict's lines, and the section below them."""
    section, verdicts = Section("Results"), []
    if lines := _lines(runs, lambda run: {each.name: each.errors for each in run.classifiers.values()}):
        caption = "Test error in percent; lower is better. Head, medium and tail are the first 20 %, the next 20 % and "
        caption += "the last 60 % of the classes by size. The change is that of all images, to the first line."
        section.tables.append(_table(lines, ("error", *GROUPS), caption))
        caption = "By many (> 100), medium and few (< 20) training images"
        section.tables.append(_table(lines, SHOTS, caption, folded=True))
        verdicts.append(_verdict(lines, "The test error", "error", max(run.test_images for run in runs)))
    name = "MODEL.HEADS.NAME"
    if lines := _lines(runs, lambda run: {run.settings.get(name, "model"): run.retrieval} if run.retrieval else {}):
        keys = dict.fromkeys(key for line in lines.values() for each in line for key in each or {})
        caption = "The last evaluation, in percent; higher is better. The change is that of the first score."
        section.tables.append(_table(lines, tuple(keys), caption))
        by_size = _lines(runs, lambda run: {run.settings.get(name, "model"): run.retrieval_by_size})
        keys_by_size = tuple(dict.fromkeys(key for run in runs for key in run.retrieval_by_size))
        caption = "The model on test identities that it was trained on, by the size of their training class"
        section.tables.append(_table(by_size, keys_by_size, caption, folded=True))
        key = next((key for key in keys if key.endswith("mAP")), next(iter(keys)))
        verdicts.append(_verdict(lines, key, key))
    return verdicts, section


def _lines(runs: list[RunRecord], of: Callable[[RunRecord], dict[str, dict[str, float]]]) -> Errors:
    """Lines of the table; runs that differ in their seed alone share theirs."""
    runs = [run for run in runs if of(run)]
    settings = [{k: v for k, v in run.settings.items() if k not in OF_A_SEED} for run in runs]
    seeds = {run.settings.get("seed") for run in runs}
    if len(runs) == 1 or (len(seeds) == len(runs) and all(each and each == settings[0] for each in settings)):
        names = dict.fromkeys(name for run in runs for name in of(run))
        return {name: [of(run).get(name) for run in runs] for name in names}
    return {f"{run.name}: {name}": [values] for run in runs for name, values in of(run).items()}


def _table(lines: Errors, keys: tuple[str, ...], caption: str, folded: bool = False) -> Table:
    keys = tuple(key for key in keys if any(each and key in each for line in lines.values() for each in line))
    if not keys:
        return Table([], [])
    titles = ["all" if key == "error" else key.removesuffix("_shot") for key in keys]
    header, rows = ["classifier", *titles, "change"], error_rows(lines, keys, keys[0])
    if folded or len(lines) == 1:
        header, rows = header[:-1], [row[:-1] for row in rows]
    return Table(header, rows, caption, folded)


def _verdict(lines: Errors, what: str, key: str, images: int = 0) -> str:
    """The last line against the first in words, and how much of it can be chance."""
    values = {name: [each[key] for each in line if each and key in each] for name, line in lines.items()}
    first, *_, last = (*lines, *lines) if len(lines) == 1 else lines
    seeds = len(lines[first])
    count = f" {seeds} seed{'s' * (seeds > 1)}"
    count += f", {images:,} test images: one image is {100 / images:.2f} points." if images else "."
    if len(lines) == 1:
        return f"{what} of {first} is {mean_and_spread(values[first])} %.{count}"
    pairs = paired(lines[last], lines[first], key)
    if not pairs:
        return f"{what} of {first} is {mean_and_spread(values[first])} %, and {last} has none.{count}"
    mean = float(np.mean(pairs))
    change = f"{abs(mean):.2f} points {'lower' if mean < 0 else 'higher'} than" if mean else "the same as"
    text = f"{what} of {last} is {change} that of {first} "
    text += f"({mean_and_spread(values[last])} % against {mean_and_spread(values[first])} %).{count}"
    lowest = min((name for name in values if values[name]), key=lambda name: float(np.mean(values[name])))
    if key == "error" and lowest != last:
        text += f" The lowest error is that of {lowest}."
    if len(pairs) > 2:
        chance = abs(mean) < 2 * float(np.std(pairs, ddof=1)) / math.sqrt(len(pairs))
        within = ", within two of its standard errors: this may be chance." if chance else "."
        return f"{text} The paired difference is {difference(pairs)}{within}"
    if not images:
        return f"{text} Other seeds move it too."
    shares = [np.mean(values[name]) / 100 for name in (first, last)]
    drawn = 200 * math.sqrt(sum(p * (1 - p) for p in shares) / images)
    text += f" Another draw of the test images alone can move a difference by {drawn:.1f} points"
    return text + (", and this one is smaller." if abs(mean) < drawn else "; other seeds move it too.")
