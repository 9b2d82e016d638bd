"""``tools/reproduce_retrieval.py``: arguments in, runner or report called, a line out."""

from __future__ import annotations

import argparse
import os
import sys

from benchmarks.retrieval.runner import Job, check_rows, finished_cells, run_cells
from benchmarks.retrieval.settings import Cell, Settings, load_settings


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description="Run cells of the retrieval tables in fast-reid, and report them.")
    p.add_argument(
        "--data",
        metavar="FOLDER",
        default=os.environ.get("FASTREID_DATASETS"),
        help="folder of the data sets (default: the variable FASTREID_DATASETS)",
    )
    p.add_argument("--settings", metavar="YAML", help="settings (default: benchmarks/retrieval/settings.yaml)")
    cells = p.add_argument_group("which cells: named groups, or every combination of the others")
    cells.add_argument("--group", nargs="+", metavar="NAME", help="groups of cells that the settings name")
    cells.add_argument("--dataset", default="omniglot", help="(default: omniglot)")
    cells.add_argument("--num-head", nargs="+", type=int, default=[20], metavar="H", help="H of <H, S> (default: 20)")
    cells.add_argument("--methods", nargs="+", default=["baseline", "mbj_w"], help="(default: baseline mbj_w)")
    cells.add_argument("--seeds", nargs="+", type=int, default=[0], help="(default: 0)")
    run = p.add_argument_group("how")
    run.add_argument("--processes", type=int, default=1, help="side by side (default: 1)")
    run.add_argument("--threads", type=int, default=1, help="CPU threads per process (default: 1)")
    run.add_argument("--state-dir", default="output/retrieval", help="fast-reid's folders (default: output/retrieval)")
    p.add_argument("--results", default="docs/results/retrieval.jsonl", help="(default: %(default)s)")
    p.add_argument("--list", action="store_true", help="print the cells that have no row yet, run none")
    p.add_argument("--report", action="store_true", help="write the page's section and figures from the rows, run none")
    p.add_argument("--page", default="docs/results.md", help="of --report (default: %(default)s)")
    run.add_argument(
        "--opts",
        nargs="+",
        default=[],
        metavar="KEY VALUE",
        help="config options that do not change the result, such as MODEL.DEVICE cuda",
    )
    return p


def chosen_cells(args: argparse.Namespace, settings: Settings) -> list[Cell]:
    """The cells that the arguments name, each once, in order."""
    if args.group:
        cells = [cell for name in args.group for cell in settings.group(name)]
    else:
        cells = settings.cells(args.dataset, args.num_head, args.methods, args.seeds)
    return list(dict.fromkeys(cells))


def main(argv: list[str] | None = None) -> None:
    """The command."""
    args = parser().parse_args(argv)
    try:
        _main(args)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"reproduce_retrieval: {error}")


def _main(args: argparse.Namespace) -> None:
    settings = load_settings(args.settings)
    if args.report:
        from benchmarks.retrieval.report import write_report

        write_report(args.results, args.page, settings)
        return
    cells = chosen_cells(args, settings)
    check_rows(cells, settings, args.results)
    if args.list:
        finished = finished_cells(args.results)
        print("\n".join(str(cell) for cell in cells if cell not in finished))
        return
    if not args.data:
        raise ValueError("which images? give --data FOLDER, or set FASTREID_DATASETS (tools/write_omniglot.py)")
    job = Job(
        data=args.data,
        results=args.results,
        state_dir=args.state_dir,
        settings_file=args.settings,
        processes=args.processes,
        threads=args.threads,
        options=tuple(args.opts),
    )
    left = run_cells(cells, job)
    print(f"{len(cells) - left} of {len(cells)} cells have a row in {args.results}")
