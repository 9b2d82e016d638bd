"""``tools/reproduce.py``: the arguments of classification, and what they call."""

from __future__ import annotations

import argparse
import time

from benchmarks.classification.runner import Job
from benchmarks.classification.settings import DRAWS, PRECISIONS, Cell, Settings
from benchmarks.command import run_command, shared_job, shared_parser

NO_DATA = "which images? give --data FOLDER with torchvision's CIFAR folders or <dataset>.npz"


def parser() -> argparse.ArgumentParser:
    p, cells, run = shared_parser(
        "Run cells of the paper's classification tables, and report them.", "classification", "output/reproduce"
    )
    p.add_argument(
        "--data", metavar="PATH", help="folder with torchvision's CIFAR folders or <dataset>.npz, or an .npz"
    )
    cells.add_argument("--datasets", nargs="+", default=["cifar10_lt"], help="(default: cifar10_lt)")
    cells.add_argument("--ratios", nargs="+", type=int, default=[100], help="imbalance ratios (default: 100)")
    cells.add_argument("--protocol", default="cpu", help="(default: cpu)")
    cells.add_argument("--methods", nargs="+", default=["ce", "mbj"], help="(default: ce mbj)")
    cells.add_argument(
        "--precision", choices=PRECISIONS, help="amp = bf16 before the classifier (default: the group's own, else fp32)"
    )
    cells.add_argument("--draws", choices=DRAWS, default="one", help="of images, for all seeds (default: one)")
    run.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="(default: cpu)")
    run.add_argument("--streams", type=int, default=1, help="cells side by side in each process (default: 1)")
    run.add_argument("--time-limit", type=float, metavar="S", help="save what is under way after so many seconds")
    run.add_argument("--no-graph", action="store_true", help="on a GPU: launch each kernel, no CUDA graph")
    return p


def chosen_cells(args: argparse.Namespace, settings: Settings) -> list[Cell]:
    """Those of the groups, or every combination of the arguments."""
    if args.group:
        return [cell for name in args.group for cell in settings.group(name, args.precision)]
    precision = args.precision or "fp32"
    return settings.cells(args.datasets, args.ratios, args.protocol, args.methods, args.seeds, precision, args.draws)


def job(args: argparse.Namespace) -> Job:
    """What the runner takes."""
    deadline = time.time() + args.time_limit if args.time_limit else float("inf")
    more = {"device": args.device, "streams": args.streams, "deadline": deadline, "graph": not args.no_graph}
    return Job(**shared_job(args), **more)


def main(argv: list[str] | None = None) -> None:
    """The command."""
    run_command("reproduce", "classification", argv)
