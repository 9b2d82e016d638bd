"""What a reader wants to know first: the table of errors or scores with differences, and the verdict in a sentence."""

from __future__ import annotations

import math

import numpy as np

from mbj_plugin.tools.report.page import Section, Table
from mbj_plugin.tools.report.run import RunRecord
from mbj_plugin.tools.report.style import GROUPS

SHOTS = ("many_shot", "medium_shot", "few_shot")
# What two runs may differ in and still be two seeds of one.
OF_A_SEED = ("seed", "output", "experiment", "mbj_seed", "resume", "local_rank", "rank", "progress", "compare", "seeds")
#: A line of the table: its name, and for each seed the errors, None where that run has not the classifier.
Lines = dict[str, list[dict[str, float] | None]]


def headline(runs: list[RunRecord]) -> tuple[list[str], Section]:
    """The verdict's lines, and the section below them."""
    section = Section("Results")
    lines, seeds = error_lines(runs)
    verdict = []
    if lines:
        caption = "Test error in percent; lower is better. Head, medium and tail are the first 20 %, the next 20 % and "
        section.tables.append(error_table(lines, ("error", *GROUPS), caption + "the last 60 % of the classes by size."))
        caption = "By many (> 100), medium and few (< 20) training images"
        section.tables.append(error_table(lines, SHOTS, caption, folded=True))
        verdict.append(error_verdict(lines, seeds, max(run.test_images for run in runs)))
    if any(run.retrieval for run in runs):
        section.tables.append(score_table(runs))
        verdict.append(score_verdict(runs))
    return [line for line in verdict if line], section


def error_lines(runs: list[RunRecord]) -> tuple[Lines, int]:
    """Lines of the table, and how many seeds each has: runs that differ in their seed alone share their lines."""
    runs = [run for run in runs if run.classifiers]
    settings = [{k: v for k, v in run.settings.items() if k not in OF_A_SEED} for run in runs]
    seeds = [run.settings.get("seed") for run in runs]
    seeds_of_one = all(each and each == settings[0] for each in settings) and len(set(seeds)) == len(seeds)
    if len(runs) == 1 or seeds_of_one:
        keys = list(dict.fromkeys(key for run in runs for key in run.classifiers))
        names = {key: next(run.classifiers[key].name for run in runs if key in run.classifiers) for key in keys}
        return {
            names[key]: [run.classifiers[key].errors if key in run.classifiers else None for run in runs]
            for key in keys
        }, len(runs)
    return {f"{run.name}: {each.name}": [each.errors] for run in runs for each in run.classifiers.values()}, 1


def pairs(lines: Lines, name: str, key: str = "error") -> list[float]:
    """Differences of a line to the first one, seed by seed."""
    both = zip(lines[name], next(iter(lines.values())), strict=True)
    return [a[key] - b[key] for a, b in both if a and b and key in a and key in b]


def spread(values: list[float], sign: str = "") -> str:
    """A number as text; of several the mean and the standard deviation."""
    if not values:
        return "–"
    text = f"{np.mean(values):{sign}.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")
    return text.replace("-", "−")


def difference(values: list[float]) -> str:
    """Paired differences as text: their mean with its standard error; fewer than three stand as they are."""
    if len(values) < 3:
        return ", ".join(spread([value], "+") for value in values) or "–"
    return spread([float(np.mean(values))], "+") + f" ± {np.std(values, ddof=1) / math.sqrt(len(values)):.2f}"


def error_table(lines: Lines, keys: tuple[str, ...], caption: str, folded: bool = False) -> Table:
    """A line for each classifier; beside the first column the difference to the first line."""
    keys = tuple(key for key in keys if any(each and key in each for line in lines.values() for each in line))
    if not keys:
        return Table([], [])
    first, rows = next(iter(lines)), []
    for name, line in lines.items():
        cells = [spread([each[key] for each in line if each and key in each]) for key in keys]
        rows.append([name, *cells[:1], "" if name == first else difference(pairs(lines, name, keys[0])), *cells[1:]])
    titles = ["all" if key == "error" else key.removesuffix("_shot") for key in keys]
    return Table(["classifier", *titles[:1], "to the first line", *titles[1:]], rows, caption, folded)


def error_verdict(lines: Lines, seeds: int, images: int) -> str:
    """One sentence on the last line against the first, and how much of it can be chance."""
    first, *rest = lines
    of_first = [each["error"] for each in lines[first] if each]
    one = f" {images:,} test images: one image is {100 / images:.2f} points." if images else ""
    count = f"{seeds} seed{'s' * (seeds > 1)},"
    if not rest:
        return f"{first}: {spread(of_first)} % of the test images are wrong. {count.capitalize()}{one}"
    values = pairs(lines, rest[-1])
    if not values:
        return ""
    mean = float(np.mean(values))
    of_last = [each["error"] for each in lines[rest[-1]] if each]
    change = f"{abs(mean):.2f} points {'fewer' if mean < 0 else 'more'} errors than" if mean else "as many errors as"
    text = f"{rest[-1]} makes {change} {first} ({spread(of_last)} % against {spread(of_first)} %). "
    text += f"{count.capitalize()}{one}"
    best = min(lines, key=lambda name: float(np.mean([each["error"] for each in lines[name] if each])))
    text += f" The lowest error is that of {best}." if best != rest[-1] else ""
    if len(values) > 2:
        error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
        return (
            text
            + f" The paired difference is {difference(values)}"
            + (", within two of its standard errors: this may be chance." if abs(mean) < 2 * error else ".")
        )
    if images:
        shares = [np.mean(each) / 100 for each in (of_first, of_last)]
        chance = 200 * math.sqrt(sum(p * (1 - p) for p in shares) / images)
        text += f" Another draw of the test images alone can move a difference by {chance:.1f} points"
        text += ", and this one is smaller." if abs(mean) < chance else "; other seeds move it too."
    return text


def score_table(runs: list[RunRecord]) -> Table:
    """Retrieval scores of the last evaluation, a line for each; beside each run the difference to the first."""
    first, rows = runs[0], []
    for key in dict.fromkeys(key for run in runs for key in run.retrieval):
        cells = [spread([first.retrieval[key]] if key in first.retrieval else [])]
        for run in runs[1:]:
            both = key in run.retrieval and key in first.retrieval
            cells.append(spread([run.retrieval[key]] if key in run.retrieval else []))
            cells.append(spread([run.retrieval[key] - first.retrieval[key]], "+") if both else "–")
        rows.append([key, *cells])
    header = ["score, %", first.name]
    for run in runs[1:]:
        header += [run.name, f"to {first.name}"]
    return Table(header, rows, "The last evaluation of each run, in percent; higher is better.")


def score_verdict(runs: list[RunRecord]) -> str:
    """The mAP (or what comes first) of the last run against the first one's."""
    first, last = runs[0].retrieval, runs[-1].retrieval
    key = next((key for key in first if key.endswith("mAP") and (key in last)), None)
    if key is None:
        return ""
    if len(runs) == 1:
        return f"{runs[0].name}: {key} {first[key]:.2f} %. One seed."
    value = last[key] - first[key]
    word = "higher" if value > 0 else "lower"
    return (
        f"{key} of {runs[-1].name} is {abs(value):.2f} points {word} than that of {runs[0].name} ({last[key]:.2f} % "
        f"against {first[key]:.2f} %), one run each: other seeds move it too."
    )
