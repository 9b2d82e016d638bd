"""Many cells: which are finished, who takes which, one row and one line each."""

from __future__ import annotations

import dataclasses
import logging
import sys
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import fastreid.data.build
import torch
import torch.multiprocessing as mp
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.engine import DefaultTrainer
from fastreid.utils.env import seed_all_rng

from benchmarks.cells import Job as BaseJob
from benchmarks.cells import append_row, check_rows, claimed, finished_cells, run_in_processes
from benchmarks.retrieval.memory_facts import memory_facts, pull
from benchmarks.retrieval.settings import Cell, Settings, load_settings
from mbj_plugin import __version__
from mbj_plugin.fastreid.collect import mbj_heads
from mbj_plugin.fastreid.counts import class_counts


@dataclasses.dataclass(frozen=True)
class Job(BaseJob):
    """What every worker of a call shares: see :class:`benchmarks.cells.Job`. ``data`` is what FASTREID_DATASETS names
    elsewhere; in ``state_dir`` are fast-reid's output folders.

    Args:
        options: config options for all cells, such as ("MODEL.DEVICE", "cuda"), which do not change the result.
    """

    options: tuple[str, ...] = ()


def run_cells(cells: list[Cell], job: Job) -> int:
    """Run every cell that has no row yet. One that was cut short starts again: a resumed fast-reid run draws other
    batches, and would not be the same run.

    Returns:
        Number of cells left without a row: under way in another call, or with a loss that was not finite.

    Raises:
        FileNotFoundError: for a data set that is not there.
        ValueError: for a row that was made with other settings, or a cell that cannot be.
    """
    settings = load_settings(job.settings_file)
    check_rows(job.results, cells, settings)
    for names in {settings.config(cell, job.options).DATASETS.NAMES for cell in cells}:
        DATASET_REGISTRY.get(names[0])(root=job.data)  # images that are missing are an error now, not in a worker
    return run_in_processes(cells, job, _work)


def quiet_fastreid() -> None:
    """Keep fast-reid's log off the screen, and what torch says of its code: a storage type that it uses, and the four
    workers of its test loader. Without a handler the trainer sets one up, which prints every layer."""
    logger = logging.getLogger("fastreid")
    logger.addHandler(logging.NullHandler())
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for message in ("TypedStorage is deprecated", "This DataLoader will create"):
        warnings.filterwarnings("ignore", message)


def _work(rank: int, cells: list[Cell], job: Job) -> None:
    """One process: takes the first cell that is free, until none is left."""
    if job.processes > 1:
        # A process that was spawned spawns in turn, and each worker of its loaders would import everything again.
        mp.set_start_method(None, force=True)
    torch.set_num_threads(job.threads)
    fastreid.data.build._root = job.data
    quiet_fastreid()
    settings = load_settings(job.settings_file)
    for cell in cells:
        if cell in finished_cells(job.results, Cell):
            continue
        with claimed(Path(job.state_dir) / f"{cell.file_name}.lock") as mine:
            if mine and cell not in finished_cells(job.results, Cell):
                try:
                    row = run_cell(cell, settings, job)
                except FloatingPointError as error:  # fast-reid's, for a loss that is not finite
                    print(f"{cell}: no row, {error}", flush=True)
                    continue
                append_row(job.results, row)
                done = len(finished_cells(job.results, Cell))
                print(
                    f"{cell}: mAP {row['mAP']:.2f}, Rank-1 {row['rank1']:.2f}, training accuracy "
                    f"{row['train_accuracy']:.1f}, {row['seconds']:.0f} s [{done} rows, {len(cells)} cells asked for]",
                    flush=True,
                )


def run_cell(cell: Cell, settings: Settings, job: Job) -> dict[str, Any]:
    """Train and evaluate one cell with fast-reid's own trainer.

    Returns:
        Its row.
    """
    started = time.monotonic()
    folder = Path(job.state_dir) / cell.file_name
    folder.mkdir(parents=True, exist_ok=True)
    cfg = settings.config(cell, job.options)
    cfg.OUTPUT_DIR = str(folder)
    cfg.freeze()
    versions = _versions()
    seed_all_rng(cell.seed)
    trainer = DefaultTrainer(cfg)
    # Of the set, not of what MBJ was told: the baseline's are the same.
    counts = class_counts(trainer.data_loader.dataset, trainer.data_loader.dataset.num_classes)
    scores = trainer.train()
    last_epoch = lambda name: trainer.storage.history(name).avg(trainer.iters_per_epoch)  # noqa: E731
    row = dataclasses.asdict(cell) | {
        "mAP": float(scores["mAP"]),
        "rank1": float(scores["Rank-1"]),
        "mINP": float(scores["mINP"]),
        "train_accuracy": 100 * float(last_epoch("cls_accuracy")),
        "train_loss": float(last_epoch("total_loss")),
        "identities": len(counts),
        "images": int(counts.sum()),
        "iterations": trainer.max_iter,
        "settings": settings.of(cell),
        "versions": versions,
        "device": f"{next(trainer.model.parameters()).device.type}, {torch.get_num_threads()} thread(s)",
    }
    if mbj_heads(trainer.model):
        tail = counts <= cell.tail_size
        row["memory"] = memory_facts(trainer.model, tail)
        trainer.model.train()
        row["pull"] = pull(trainer.model, next(trainer._trainer._data_loader_iter))
    if hasattr(trainer.data_loader, "shutdown"):
        trainer.data_loader.shutdown()  # fast-reid's loader on a GPU has a thread that nobody else ends
    return row | {"seconds": round(time.monotonic() - started, 1)}


def _versions() -> dict[str, str]:
    try:
        fastreid_version = version("fastreid")
    except PackageNotFoundError:
        fastreid_version = "a checkout"
    python = sys.version.split()[0]
    return {"mbj_plugin": __version__, "fastreid": fastreid_version, "python": python, "torch": torch.__version__}
