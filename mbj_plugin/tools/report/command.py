"""``mbj report``: one page for one run or several. Each host reads its own run folders, and only then is it
imported."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from pathlib import Path
from typing import Any

from mbj_plugin.command_line import one_line
from mbj_plugin.tools.parser import OneLineParser, check_device
from mbj_plugin.tools.report.run import RunRecord

# Files that tell whose run it is, without importing the host.
FILES = {
    "timm": ("args.yaml", "summary.csv", "results.json", "last.pth.tar", "model_best.pth.tar"),
    "fastreid": ("config.yaml", "metrics.json", "model_final.pth", "model_best.pth", "last_checkpoint"),
}
INSTALL = "pip install 'mbj_plugin[report]'"


def main(argv: list[str] | None = None) -> None:
    """The command."""
    p = OneLineParser(
        prog="mbj report",
        description="Write one HTML page, which works offline, on runs of mbj train or fast-reid. For one run it "
        "compares the run's classifiers, for several runs it compares the runs. It shows the error by class size, "
        "confusion, retrieval, curves, memory and jitter. Runs that differ only in their seed are shown as mean and "
        "spread.",
    )
    p.add_argument("runs", nargs="+", metavar="RUN", help="run folder, or a folder of run folders")
    p.add_argument(
        "--output", metavar="FOLDER", help="folder for report.html and the pictures (default: report/ in the first RUN)"
    )
    p.add_argument("--data", metavar="FOLDER", help="folder of the images, if they have moved since the run")
    p.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="module that registers your own data set",
    )
    p.add_argument("--device", default="cpu", help="where the models run (default: %(default)s)")
    p.add_argument("--no-model", action="store_true", help="do not run the models: no confusion and no worst queries")
    args = p.parse_args(argv)
    logging.getLogger("timm").setLevel(logging.WARNING)
    with one_line("mbj report", INSTALL):
        print(f"Written: {report(args)}")


def report(args: argparse.Namespace) -> Path:
    """Read the runs and write the page."""
    check_device(args.device)
    if args.data is not None and not Path(args.data).is_dir():
        raise ValueError(f"--data {args.data}: there is no such folder")
    from mbj_plugin.tools.report.sections import write_report
    from mbj_plugin.tools.report.style import COLOURS

    sys.path.insert(0, os.getcwd())  # as python does for a script of the user's
    if args.modules:
        importlib.import_module("mbj_plugin.fastreid")  # fast-reid cannot be imported before it
    for module in args.modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            raise ValueError(f"--import {module}: there is no {module}.py here, and no such package") from error
    found = [run for folder in args.runs for run in run_folders(Path(folder))]
    folders = list({folder.resolve(): folder for folder in found}.values())  # one given twice is shown once
    if len(folders) > len(COLOURS):
        raise ValueError(f"a page compares 1 to {len(COLOURS)} runs, got {len(folders)}: give fewer")
    root, runs = os.path.commonpath([folder.resolve().parent for folder in folders]), []
    for folder in folders:
        name = folder.resolve().relative_to(root).as_posix()
        print(f"Reading {name} ...", flush=True)
        runs.append(RunRecord(name))
        host: Any = importlib.import_module(f"mbj_plugin.tools.report.{kind_of(folder)}_run")
        host.read_run(runs[-1], folder, args)
        for line in runs[-1].missing:
            print(f"  {line}")
    return write_report(runs, Path(args.output or Path(args.runs[0], "report")))


def run_folders(folder: Path) -> list[Path]:
    """The folder itself, or the runs in it, as ``--compare`` and ``--seeds`` leave them."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: give the folder that a run wrote, with its checkpoint in it")
    if kind_of(folder):
        return [folder]
    inside = sorted({file.parent for names in FILES.values() for name in names for file in folder.glob(f"*/**/{name}")})
    if not inside:
        expected = "; ".join(f"{host}: {', '.join(names)}" for host, names in FILES.items())
        raise ValueError(f"{folder} holds no file of a run (expected one of {expected})")
    return inside


def kind_of(folder: Path) -> str | None:
    """The host that wrote the folder, by its files."""
    return next((host for host, names in FILES.items() if any((folder / name).exists() for name in names)), None)
