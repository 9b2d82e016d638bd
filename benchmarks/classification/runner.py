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
from benchmarks.classification.passenger import Features, log_folder, passenger_row
from benchmarks.classification.settings import Cell, Method, Settings, load_settings
from benchmarks.classification.training import CellRun

KEYS = ("dataset", "imbalance_ratio", "protocol", "method", "seed", "precision")


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
                for group in together(cells, settings):
                    if time.time() >= job.deadline or errors:
                        return
                    run_together(group, settings, images, job, len(cells))
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


def run_together(cells: list[Cell], settings: Settings, images: Any, job: Job, total: int) -> None:
    """Run one cell, or the passengers of one run, and write their rows, unless another worker holds them.

    Args:
        cells: that :func:`together` has put side by side.
        settings: of all cells.
        images: data set to its images.
        job: of this call.
        total: cells that were asked for.
    """
    host = host_cell(cells[0], settings)
    with claimed(Path(job.state_dir) / f"{host.file_name}.lock") as mine:
        finished = finished_cells(job.results)
        cells = [cell for cell in cells if cell not in finished]
        if not mine or not cells:
            return
        protocol, method = settings.protocols[host.protocol], settings.methods[host.method]
        max_count = (protocol.max_count or {}).get(host.dataset)
        subset: Images = images(host.dataset).long_tailed(host.imbalance_ratio, max_count)
        state_file = _state_file(host, settings, subset.sha256, Path(job.state_dir))
        passengers = [cell for cell in cells if settings.methods[cell.method].is_passenger]
        run = CellRun(
            *(protocol, method, subset, host.seed, job.device, job.graph, host.precision),
            log_folder=log_folder(state_file) if passengers else None,
        )
        if not run.train(state_file, time.monotonic() + job.deadline - time.time()):
            print(f"{host}: saved after {run.epoch} of {protocol.epochs} epochs, out of time", flush=True)
            return

        def write(cell: Cell, result: dict[str, Any]) -> None:
            row = {**dataclasses.asdict(cell), **result, "settings": settings.of(cell)}
            row["data"] = {"source": subset.source, "sha256": subset.sha256}
            append_row(job.results, row)
            _say(cell, row, len(finished_cells(job.results)), total)

        for cell in cells:
            if cell not in passengers:
                write(cell, run.result())
        if not passengers:
            state_file.unlink(missing_ok=True)
            return
        # The state and the features stay: another passenger takes a minute then.
        run.save(state_file)
        features = Features(run)
        for cell in passengers:
            if time.time() >= job.deadline:
                return
            write(cell, passenger_row(settings.methods[cell.method], features))


def _say(cell: Cell, row: dict[str, Any], done: int, total: int) -> None:
    groups = " / ".join(f"{row[name]:.1f}" for name in ("head", "medium", "tail"))
    print(
        f"{cell}: error {row['error']:.2f} (head / medium / tail {groups}), train {row['train_accuracy']:.1f}, "
        f"{row['seconds']:.0f} s [{done} rows, {total} cells asked for]",
        flush=True,
    )


def together(cells: list[Cell], settings: Settings) -> list[list[Cell]]:
    """Cells that one run gives, in the order of the first of each: a batch loss and its passengers."""
    groups: dict[Cell, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(host_cell(cell, settings), []).append(cell)
    return list(groups.values())


def host_cell(cell: Cell, settings: Settings) -> Cell:
    """The run that a cell is of: its own, or that of its batch loss, which has the method's name where it has one."""
    method = settings.methods[cell.method]
    if not method.is_passenger:
        return cell
    alone = Method(loss=method.loss)
    name = next((name for name, other in settings.methods.items() if other == alone), None)
    if name is None:
        raise ValueError(f"{cell.method} rides on the run of {method.loss}: the settings need a method of it alone")
    return dataclasses.replace(cell, method=name)


def _state_file(host: Cell, settings: Settings, sha256: str, state_dir: Path) -> Path:
    """Its name carries the settings and the images, so that no stale one is taken."""
    content = json.dumps([settings.of(host), sha256])
    return state_dir / f"{host.file_name}-{hashlib.sha256(content.encode()).hexdigest()[:12]}.pt"


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a results file, [] where there is none."""
    return results.read_rows(path, KEYS)


def finished_cells(path: str | Path) -> set[Cell]:
    return {cell_of(row, Cell) for row in read_rows(path)}


def check_rows(cells: list[Cell], settings: Settings, path: str | Path) -> None:
    """See :func:`benchmarks.cells.check_rows`."""
    results.check_rows(read_rows(path), cells, settings, path)
