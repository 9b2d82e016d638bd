"""Pages that are made from rows: what the reports of all tasks share."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cells import cell_of, check_rows, finished_cells, read_rows

#: A method's rows by seed, and those of methods.
Runs = dict[int, dict[str, Any]]
Table = dict[str, Runs]
#: Name of a number, whether less of it is better, and digits behind the point of its differences.
Measure = tuple[str, bool, int]

PAIRS = (
    "± after a mean is the standard deviation over seeds; ± after a difference is the standard error of the mean of "
    "the paired differences (same seed = same initial weights, same batches, same crops), and (k/n) says in how many "
    "of n pairs the first is better. With fewer than three seeds the values themselves are given. † marks differences "
    "between runs of two versions of torch."
)


def known_rows(path: str | Path, kind: type, settings: Any, known: Callable[[Any], bool]) -> list[dict[str, Any]]:
    """The rows of a results file that the settings know.

    Raises:
        ValueError: where there are none, or one was made with other settings.
    """
    names = {*settings.methods, *settings.retired}
    rows = [row for row in read_rows(path, kind) if row["method"] in names and known(cell_of(row, kind))]
    if not rows:
        raise ValueError(f"there are no rows in {path}: run some cells first")
    check_rows(path, [cell_of(row, kind) for row in rows if row["method"] not in settings.retired], settings)
    return rows


def by_method(rows: Iterable[dict[str, Any]], settings: Any) -> Table:
    """Rows by method in the order of the settings, the retired last, then seed."""
    rows = sorted(rows, key=lambda row: row["seed"])
    names = [*settings.methods, *settings.retired]
    table = {method: {row["seed"]: row for row in rows if row["method"] == method} for method in names}
    return {method: runs for method, runs in table.items() if runs}


def column(runs: Runs, name: str) -> dict[int, float]:
    """One number of a method's rows, by seed."""
    return {seed: row[name] for seed, row in runs.items()}


def markdown(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    texts = ["| " + " | ".join(map(str, line)) + " |" for line in (head, *lines)]
    return "\n".join([texts[0], "|" + "---|" * len(head), *texts[1:]])


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation; below three values these themselves."""
    if len(values) < 3:
        return ", ".join(f"{value:.1f}" for value in values)
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def comparable(runs: Runs, others: Runs) -> Runs:
    """The others' rows that make a pair with a method's: same seed, and same kind of device, since a GPU draws other
    batches than a CPU."""
    kind = lambda row: row["device"].split(",")[0]  # noqa: E731
    return {seed: row for seed, row in others.items() if seed in runs and kind(row) == kind(runs[seed])}


def pair(table: Table, method: str, other: str, number: str, lower_is_better: bool, digits: int = 1) -> str:
    """:func:`paired` of one number of two methods, where both have rows, marked where versions of torch differ."""
    if method == other:
        return ""
    ours = table.get(method, {})
    theirs = comparable(ours, table.get(other, {}))
    text = paired(column(ours, number), column(theirs, number), lower_is_better, digits)
    one_torch = all(row["versions"]["torch"] == ours[seed]["versions"]["torch"] for seed, row in theirs.items())
    return text if one_torch else f"{text}†"


def results_text(
    table: Table,
    measure: Measure,
    numbers: Mapping[str, str],
    baselines: Sequence[str],
    more: Mapping[str, Callable[[str], str]],
    mark: Callable[[str], str] = lambda method: "",
) -> str:
    """Of each method mean and standard deviation over seeds, and the paired differences to the baselines; of those with
    the most seeds the best one is bold.

    Args:
        table: by method, then seed.
        measure: what is best, and what is paired.
        numbers: of the rows, that one first, to the titles of their columns.
        baselines: methods.
        more: titles of further columns to what stands there, of a method.
        mark: behind a method's number of seeds.
    """
    name, lower_is_better, _ = measure
    most = max(map(len, table.values()))
    means = {
        method: statistics.mean(column(runs, name).values()) for method, runs in table.items() if len(runs) == most
    }
    best = min(means.values()) if lower_is_better else max(means.values())
    lines = []
    for method, runs in table.items():
        values = [spread(list(column(runs, number).values())) for number in numbers]
        if means.get(method) == best:
            values[0] = f"**{values[0]}**"
        pairs = [pair(table, method, other, *measure) for other in baselines]
        lines.append(
            [f"`{method}`", f"{len(runs)}{mark(method)}", *values, *pairs, *(of(method) for of in more.values())]
        )
    return markdown(["method", "seeds", *numbers.values(), *(f"− `{other}`" for other in baselines), *more], lines)


def compared_text(table: Table, measure: Measure, compared: Iterable[tuple[str, str]]) -> str:
    """Paired differences between two methods, neither one a baseline, where both have rows; "" where none has."""
    pairs = [(f"`{ours}` − `{theirs}`", pair(table, ours, theirs, *measure)) for ours, theirs in compared]
    lines = [line for line in pairs if line[1]]
    return markdown(["methods", measure[0]], lines) if lines else ""


def paired(ours: Mapping[int, float], theirs: Mapping[int, float], lower_is_better: bool, digits: int = 1) -> str:
    """Mean of ours - theirs over the seeds that both have ± its standard error, and in how many ours is better; below
    three pairs the differences themselves.

    Args:
        ours: seed to value.
        theirs: seed to value.
        lower_is_better: for errors; False for scores.
        digits: behind the point.

    Returns:
        As ``−1.2 ± 0.3 (4/5)``; empty without a common seed.
    """
    differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    if not differences:
        return ""
    if len(differences) < 3:
        text = ", ".join(f"{difference:+.{digits}f}" for difference in differences)
    else:
        error = statistics.stdev(differences) / len(differences) ** 0.5
        text = f"{statistics.mean(differences):+.{digits}f} ± {error:.{digits}f}"
    text = text.replace("-", "−")
    better = sum(d < 0 if lower_is_better else d > 0 for d in differences)
    return f"{text} ({better}/{len(differences)})"


def missing_text(settings: Any, results: str | Path, kind: type, command: Callable[[str], str]) -> str:
    """The groups of the settings that have cells without a row, and the commands that remain.

    Args:
        settings: with ``groups`` and ``group(name)``.
        results: file of rows.
        kind: dataclass of the cells.
        command: of the name of a group, what runs it.
    """
    finished, lines, commands = finished_cells(results, kind), [], []
    for name in settings.groups:
        cells = settings.group(name)
        if missing := sum(cell not in finished for cell in cells):
            lines.append(f"- group `{name}`: {missing} of {len(cells)} cells have no row")
            commands.append(command(name))
    if not lines:
        return "## What is missing\n\nNothing: every cell of the named groups has a row."
    says = "Commands that run what is left (finished cells are skipped):"
    return "\n".join(["## What is missing", "", *lines, "", says, "", "```sh", *commands, "```"])


def versions_text(rows: Iterable[dict[str, Any]], data: Iterable[str]) -> str:
    """Where the rows were made, and a line for each set of images."""
    stacks = {", ".join([row["device"], *(f"{k} {v}" for k, v in sorted(row["versions"].items()))]) for row in rows}
    return "\n".join(["## Versions and data", "", *(f"- {line}" for line in [*sorted(stacks), *data])])
