"""``tools/reproduce_retrieval.py``: the arguments of retrieval, and what they call."""

from __future__ import annotations

import argparse
import os

from benchmarks.command import run_command, shared_job, shared_parser
from benchmarks.retrieval.runner import Job
from benchmarks.retrieval.settings import Cell, Settings

NO_DATA = "which images? give --data FOLDER, or set FASTREID_DATASETS (tools/write_omniglot.py)"


def parser() -> argparse.ArgumentParser:
    p, cells, run = shared_parser(
        "Run cells of the retrieval tables in fast-reid, and report them.", "retrieval", "output/retrieval"
    )
    p.add_argument(
        "--data",
        metavar="FOLDER",
        default=os.environ.get("FASTREID_DATASETS"),
        help="folder of the data sets (default: the variable FASTREID_DATASETS)",
    )
    cells.add_argument("--dataset", default="omniglot", help="(default: omniglot)")
    cells.add_argument("--num-head", nargs="+", type=int, default=[20], metavar="H", help="H of <H, S> (default: 20)")
    cells.add_argument("--methods", nargs="+", default=["baseline", "mbj_w"], help="(default: baseline mbj_w)")
    run.add_argument(
        "--opts",
        nargs="+",
        default=[],
        metavar="KEY VALUE",
        help="config options that do not change the result, such as MODEL.DEVICE cuda",
    )
    return p


def chosen_cells(args: argparse.Namespace, settings: Settings) -> list[Cell]:
    """Those of the groups, or every combination of the arguments."""
    if args.group:
        return [cell for name in args.group for cell in settings.group(name)]
    return settings.cells(args.dataset, args.num_head, args.methods, args.seeds)


def job(args: argparse.Namespace) -> Job:
    """What the runner takes."""
    return Job(**shared_job(args), options=tuple(args.opts))


def main(argv: list[str] | None = None) -> None:
    """The command."""
    run_command("reproduce_retrieval", "retrieval", argv)
