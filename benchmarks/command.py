"""The command line of a harness, once for all: which cells, how, or the page; arguments in, a line out."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.cells import Job, check_rows, finished_cells
from benchmarks.summary import write_summary


@dataclasses.dataclass(frozen=True)
class Harness:
    """What the command of one task calls.

    Args:
        name: of the command, before an error.
        load_settings: from a file, None = the shipped one.
        chosen_cells: of the arguments and the settings, where no group is named.
        group: of the name of a group, the arguments and the settings: its cells.
        job: of the arguments.
        run_cells: gives the number of cells that are left.
        write_page: of the results file, the page and the settings.
        no_data: what is wrong without ``--data``.
    """

    name: str
    load_settings: Callable[[str | None], Any]
    chosen_cells: Callable[[argparse.Namespace, Any], list[Any]]
    group: Callable[[str, argparse.Namespace, Any], list[Any]]
    job: Callable[[argparse.Namespace], Job]
    run_cells: Callable[[list[Any], Any], int]
    write_page: Callable[[str, str, Any], None]
    no_data: str


def shared_parser(description: str, task: str, state_dir: str) -> tuple[argparse.ArgumentParser, Any, Any]:
    """The arguments that every harness has.

    Args:
        description: of the command.
        task: folder of its settings, and name of its rows and its page in docs/results.
        state_dir: default of ``--state-dir``.

    Returns:
        The parser, and its groups for what chooses cells and for how they run.
    """
    p = argparse.ArgumentParser(description=description)
    p.add_argument("--settings", metavar="YAML", help=f"settings (default: benchmarks/{task}/settings.yaml)")
    cells = p.add_argument_group("which cells: named groups, or every combination of the others")
    cells.add_argument("--group", nargs="+", metavar="NAME", help="groups of cells that the settings name")
    cells.add_argument("--seeds", nargs="+", type=int, default=[0], help="(default: 0)")
    run = p.add_argument_group("how")
    run.add_argument("--processes", type=int, default=1, help="side by side (default: 1)")
    run.add_argument("--threads", type=int, default=1, help="CPU threads per process (default: 1)")
    run.add_argument("--state-dir", default=state_dir, help="of cells under way (default: %(default)s)")
    p.add_argument("--results", default=f"docs/results/{task}.jsonl", help="(default: %(default)s)")
    p.add_argument("--list", action="store_true", help="print the cells that have no row yet, run none")
    p.add_argument("--report", action="store_true", help="write the page and the figures from the rows, run none")
    p.add_argument("--page", default=f"docs/results/{task}.md", help="of --report (default: %(default)s)")
    return p, cells, run


def shared_job(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of :class:`.cells.Job`."""
    given = ("data", "results", "state_dir", "processes", "threads")
    return {name: getattr(args, name) for name in given} | {"settings_file": args.settings}


def run_command(harness: Harness, args: argparse.Namespace) -> None:
    """Run cells, list them, or write the page; a mistake is one line."""
    try:
        _run(harness, args)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"{harness.name}: {error}")


def _run(harness: Harness, args: argparse.Namespace) -> None:
    settings = harness.load_settings(args.settings)
    if args.report:
        harness.write_page(args.results, args.page, settings)
        write_summary(Path(args.page).parent)
        return
    if args.group:
        cells = [cell for name in args.group for cell in harness.group(name, args, settings)]
    else:
        cells = harness.chosen_cells(args, settings)
    cells = list(dict.fromkeys(cells))
    check_rows(args.results, cells, settings)
    if args.list:
        finished = finished_cells(args.results, type(cells[0])) if cells else set()
        print("\n".join(str(cell) for cell in cells if cell not in finished))
        return
    if not args.data:
        raise ValueError(harness.no_data)
    left = harness.run_cells(cells, harness.job(args))
    print(f"{len(cells) - left} of {len(cells)} cells have a row in {args.results}")
