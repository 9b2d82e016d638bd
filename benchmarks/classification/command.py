"""``tools/reproduce.py``: arguments in, runner or report called, a line out."""

from __future__ import annotations

import argparse
import sys
import time

from benchmarks.classification.runner import Job, check_rows, finished_cells, run_cells
from benchmarks.classification.settings import PRECISIONS, Cell, Settings, load_settings


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description="Run cells of the paper's classification tables, and report them.")
    p.add_argument(
        "--data", metavar="PATH", help="folder with torchvision's CIFAR folders or <dataset>.npz, or an .npz"
    )
    p.add_argument("--settings", metavar="YAML", help="settings (default: benchmarks/classification/settings.yaml)")
    cells = p.add_argument_group("which cells: named groups, or every combination of the others")
    cells.add_argument("--group", nargs="+", metavar="NAME", help="groups of cells that the settings name")
    cells.add_argument("--datasets", nargs="+", default=["cifar10_lt"], help="(default: cifar10_lt)")
    cells.add_argument("--ratios", nargs="+", type=int, default=[100], help="imbalance ratios (default: 100)")
    cells.add_argument("--protocol", default="cpu", help="(default: cpu)")
    cells.add_argument("--methods", nargs="+", default=["ce", "mbj"], help="(default: ce mbj)")
    cells.add_argument("--seeds", nargs="+", type=int, default=[0], help="(default: 0)")
    cells.add_argument(
        "--precision", choices=PRECISIONS, help="bf16 = under autocast (default: the group's own, else fp32)"
    )
    run = p.add_argument_group("how")
    run.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="(default: cpu)")
    run.add_argument("--processes", type=int, default=1, help="side by side (default: 1)")
    run.add_argument("--streams", type=int, default=1, help="cells side by side in each process (default: 1)")
    run.add_argument("--threads", type=int, default=1, help="CPU threads per process (default: 1)")
    run.add_argument("--time-limit", type=float, metavar="S", help="save what is under way after so many seconds")
    run.add_argument("--no-graph", action="store_true", help="on a GPU: launch each kernel, no CUDA graph")
    run.add_argument("--state-dir", default="output/reproduce", help="unfinished cells (default: output/reproduce)")
    p.add_argument("--results", default="docs/results/classification.jsonl", help="(default: %(default)s)")
    p.add_argument("--list", action="store_true", help="print the cells that have no row yet, run none")
    p.add_argument("--report", action="store_true", help="write the page and the figures from the rows, run none")
    p.add_argument("--page", default="docs/results.md", help="of --report (default: %(default)s)")
    return p


def chosen_cells(args: argparse.Namespace, settings: Settings) -> list[Cell]:
    """The cells that the arguments name, each once, in order."""
    if args.group:
        cells = [cell for name in args.group for cell in settings.group(name, args.precision)]
    else:
        cells = settings.cells(
            args.datasets, args.ratios, args.protocol, args.methods, args.seeds, args.precision or "fp32"
        )
    return list(dict.fromkeys(cells))


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    try:
        _main(args)
    except ValueError as error:
        sys.exit(f"reproduce: {error}")


def _main(args: argparse.Namespace) -> None:
    settings = load_settings(args.settings)
    if args.report:
        from benchmarks.classification.report import write_report

        write_report(args.results, args.page, settings)
        return
    cells = chosen_cells(args, settings)
    check_rows(cells, settings, args.results)
    if args.list:
        finished = finished_cells(args.results)
        print("\n".join(str(cell) for cell in cells if cell not in finished))
        return
    if not args.data:
        raise ValueError("which images? give --data FOLDER with torchvision's CIFAR folders or <dataset>.npz")
    job = Job(
        data=args.data,
        results=args.results,
        state_dir=args.state_dir,
        settings_file=args.settings,
        device=args.device,
        processes=args.processes,
        streams=args.streams,
        deadline=time.time() + args.time_limit if args.time_limit else float("inf"),
        threads=args.threads,
        graph=not args.no_graph,
    )
    left = run_cells(cells, job)
    print(f"{len(cells) - left} of {len(cells)} cells have a row in {args.results}")
