"""Many cells: which are finished, who takes which, one row and one line each."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import threading
import time
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from benchmarks import cells as results
from benchmarks.cells import append_row, cell_of, claimed
from benchmarks.classification.data import Images, find_images, load_images
from benchmarks.classification.settings import Cell, Settings, load_settings
from benchmarks.classification.training import CellRun

KEYS = ("dataset", "imbalance_ratio", "protocol", "method", "seed")


@dataclasses.dataclass(frozen=True)
class Job:
    """What every worker of a call shares.

    Args:
        data: see :func:`load_images`.
        results: JSON lines, one per finished cell.
        state_dir: locks of the cells under way, and where each goes on from.
        settings_file: None = the shipped one.
        device: "cpu" or "cuda".
        processes: side by side, each with its own copy of the images.
        streams: cells side by side in each process, on streams of one GPU.
        deadline: by ``time.time``: cells under way are saved then, and none is started.
        threads: of torch on the CPU, per process.
        graph: capture steps in CUDA graphs.
    """

    data: str
    results: str
    state_dir: str
    settings_file: str | None = None
    device: str = "cpu"
    processes: int = 1
    streams: int = 1
    deadline: float = math.inf
    threads: int = 1
    graph: bool = True

    def __post_init__(self) -> None:
        for name in ("processes", "streams", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device 'cuda' is not available here: take --device cpu")


def run_cells(cells: list[Cell], job: Job) -> int:
    """Run every cell that has no row yet.

    Returns:
        Number of cells left without a row (out of time, or under way in another call).

    Raises:
        ValueError: for images that are missing, or a row that was made with other settings.
    """
    settings = load_settings(job.settings_file)
    check_rows(cells, settings, job.results)
    finished = finished_cells(job.results)
    for dataset in {cell.dataset for cell in cells if cell not in finished}:
        find_images(dataset, job.data)  # images that are missing are an error now, not in a worker
    Path(job.state_dir).mkdir(parents=True, exist_ok=True)
    Path(job.results).parent.mkdir(parents=True, exist_ok=True)
    if job.processes == 1:
        _work(cells, job)
    else:
        mp.spawn(_process, (cells, job), nprocs=job.processes)
    finished = finished_cells(job.results)
    return sum(cell not in finished for cell in cells)


def _process(rank: int, cells: list[Cell], job: Job) -> None:
    _work(cells, job)


def _work(cells: list[Cell], job: Job) -> None:
    """One process: each of its threads takes the first cell that is free, until none is left."""
    torch.set_num_threads(job.threads)
    settings = load_settings(job.settings_file)
    images = functools.cache(lambda dataset: load_images(dataset, job.data))
    for dataset in {cell.dataset for cell in cells} if job.streams > 1 else ():
        images(dataset)  # before the threads start, so that they share it
    errors: list[BaseException] = []

    def thread() -> None:
        try:
            stream = torch.cuda.stream(torch.cuda.Stream()) if job.device == "cuda" else contextlib.nullcontext()
            with stream:
                for cell in cells:
                    if time.time() >= job.deadline or errors:
                        return
                    run_cell(cell, settings, images, job, len(cells))
        except BaseException as error:
            errors.append(error)

    if job.streams == 1:
        thread()
    else:
        threads = [threading.Thread(target=thread) for _ in range(job.streams)]
        for worker in threads:
            worker.start()
        for worker in threads:
            worker.join()
    if errors:
        raise errors[0]


def run_cell(cell: Cell, settings: Settings, images: Any, job: Job, total: int) -> None:
    """Run one cell and write its row, unless it has one or another worker holds it."""
    if cell in finished_cells(job.results):
        return
    with claimed(Path(job.state_dir) / f"{cell.file_name}.lock") as mine:
        if not mine or cell in finished_cells(job.results):
            return
        protocol, method = settings.protocols[cell.protocol], settings.methods[cell.method]
        max_count = (protocol.max_count or {}).get(cell.dataset)
        subset: Images = images(cell.dataset).long_tailed(cell.imbalance_ratio, max_count)
        if (twin := _twin(cell, settings, subset.sha256, job.results)) is not None:
            append_row(job.results, twin | {"method": cell.method, "same_run_as": twin["method"]})
            print(f"{cell}: the run of {twin['method']}, under another name", flush=True)
            return
        run = CellRun(protocol, method, subset, cell.seed, job.device, job.graph)
        state_file, trunk_file = _files(cell, settings, subset.sha256, Path(job.state_dir))
        if not run.train(state_file, time.monotonic() + job.deadline - time.time(), trunk_file):
            print(f"{cell}: saved after {run.epoch} of {protocol.epochs} epochs, out of time", flush=True)
            return
        row = {**dataclasses.asdict(cell), **run.result(), "settings": settings.of(cell)}
        row["data"] = {"source": subset.source, "sha256": subset.sha256}
        append_row(job.results, row)
        state_file.unlink(missing_ok=True)
        done = len(finished_cells(job.results))
        groups = " / ".join(f"{row[name]:.1f}" for name in ("head", "medium", "tail"))
        print(
            f"{cell}: error {row['error']:.2f} (head / medium / tail {groups}), train {row['train_accuracy']:.1f}, "
            f"{row['seconds']:.0f} s [{done} rows, {total} cells asked for]",
            flush=True,
        )


def _files(cell: Cell, settings: Settings, sha256: str, state_dir: Path) -> tuple[Path, Path]:
    """State and trunk of a cell. Their names carry the settings and the images, so that no stale one is taken."""
    method, loss = settings.of(cell), settings.methods[cell.method].loss
    trunk = dataclasses.replace(cell, method=f"trunk-{loss}"), [method["protocol"], loss, sha256]
    names = []
    for one, content in ((cell, [method, sha256]), trunk):
        names.append(f"{one.file_name}-{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]}")
    return state_dir / f"{names[0]}.pt", state_dir / f"{names[1]}.trunk"


def _twin(cell: Cell, settings: Settings, sha256: str, path: str) -> dict[str, Any] | None:
    """A row of the same run under another method's name: the recommended method is one of the compared ones."""
    for row in read_rows(path):
        same_run = (
            dataclasses.replace(cell_of(row, Cell), method=cell.method) == cell and row["data"]["sha256"] == sha256
        )
        if same_run and row["settings"] == settings.of(cell):
            return row
    return None


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a results file, [] where there is none."""
    return results.read_rows(path, KEYS)


def finished_cells(path: str | Path) -> set[Cell]:
    return {cell_of(row, Cell) for row in read_rows(path)}


def check_rows(cells: list[Cell], settings: Settings, path: str | Path) -> None:
    """See :func:`benchmarks.cells.check_rows`."""
    results.check_rows(read_rows(path), cells, settings, path)
