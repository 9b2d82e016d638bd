"""The command line of a harness, once for all: which cells, how, or the page; arguments in, a line out."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

from benchmarks.cells import check_rows, finished_cells
from benchmarks.summary import write_summary


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


def run_command(name: str, task: str, argv: list[str] | None) -> None:
    """Run cells, list them, or write the page; a mistake is one line.

    Args:
        name: of the command, before an error.
        task: folder of benchmarks/ with the modules command, runner, settings and report.
        argv: arguments; None = the process's.
    """
    command, runner, settings = (
        importlib.import_module(f"benchmarks.{task}.{module}") for module in ("command", "runner", "settings")
    )
    args = command.parser().parse_args(argv)
    try:
        _run(command, runner, settings.load_settings(args.settings), f"benchmarks.{task}.report", args)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"{name}: {error}")


def _run(command: Any, runner: Any, settings: Any, report: str, args: argparse.Namespace) -> None:
    if args.report:
        write_page(importlib.import_module(report), args.results, Path(args.page), settings)
        return
    cells = list(dict.fromkeys(command.chosen_cells(args, settings)))
    check_rows(args.results, cells, settings)
    if args.list:
        finished = finished_cells(args.results, type(cells[0])) if cells else set()
        print("\n".join(str(cell) for cell in cells if cell not in finished))
        return
    if not args.data:
        raise ValueError(command.NO_DATA)
    left = runner.run_cells(cells, command.job(args))
    print(f"{len(cells) - left} of {len(cells)} cells have a row in {args.results}")


def write_page(report: Any, results: str | Path, page: Path, settings: Any) -> None:
    """Write the page of a report module, its figures beside it, and the summary above it."""
    text = report.page_text(results, settings)
    page.parent.mkdir(parents=True, exist_ok=True)
    for name, draw in report.figures(results, settings).items():
        draw(page.parent / name)
    page.write_text(text)
    write_summary(page.parent)
