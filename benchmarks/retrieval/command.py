"""``tools/reproduce_retrieval.py``: the arguments of retrieval, and what they call."""

from __future__ import annotations

import argparse
import os

from benchmarks.command import Harness, run_command, shared_job, shared_parser
from benchmarks.retrieval.runner import Job, run_cells
from benchmarks.retrieval.settings import Cell, Settings, load_settings


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
    """Every combination of the arguments."""
    return settings.cells(args.dataset, args.num_head, args.methods, args.seeds)


def _write_page(results: str, page: str, settings: Settings) -> None:
    from benchmarks.retrieval.report import write_page  # needs matplotlib

    write_page(results, page, settings)


HARNESS = Harness(
    name="reproduce_retrieval",
    load_settings=load_settings,
    chosen_cells=chosen_cells,
    group=lambda name, args, settings: settings.group(name),
    job=lambda args: Job(**shared_job(args), options=tuple(args.opts)),
    run_cells=run_cells,
    write_page=_write_page,
    no_data="which images? give --data FOLDER, or set FASTREID_DATASETS (tools/write_omniglot.py)",
)


def main(argv: list[str] | None = None) -> None:
    """The command."""
    run_command(HARNESS, parser().parse_args(argv))
