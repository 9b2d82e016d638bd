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

from benchmarks.cells import Job as BaseJob
from benchmarks.cells import append_row, check_rows, claimed, finished_cells, run_in_processes
from benchmarks.classification.data import Images, find_images, load_images
from benchmarks.classification.passenger import Features, log_folder, passenger_row
from benchmarks.classification.settings import Cell, Method, Settings, load_settings
from benchmarks.classification.training import CellRun


@dataclasses.dataclass(frozen=True)
class Job(BaseJob):
    """What every worker of a call shares: see :class:`benchmarks.cells.Job`, with ``data`` of :func:`load_images`.

    Args:
        device: "cpu" or "cuda".
        streams: cells side by side in each process, on streams of one GPU.
        deadline: by ``time.time``: cells under way are saved then, and none is started.
        graph: capture steps in CUDA graphs.
    """

    device: str = "cpu"
    streams: int = 1
    deadline: float = math.inf
    graph: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.streams < 1:
            raise ValueError(f"streams must be >= 1, got {self.streams}")
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
    check_rows(job.results, cells, settings)
    finished = finished_cells(job.results, Cell)
    for dataset in {cell.dataset for cell in cells if cell not in finished}:
        find_images(dataset, job.data)  # images that are missing are an error now, not in a worker
    return run_in_processes(cells, job, _work)


def _work(rank: int, cells: list[Cell], job: Job) -> None:
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
        finished = finished_cells(job.results, Cell)
        cells = [cell for cell in cells if cell not in finished]
        if not mine or not cells:
            return
        protocol, method = settings.protocols[host.protocol], settings.methods[host.method]
        max_count = (protocol.max_count or {}).get(host.dataset)
        subset: Images = images(host.dataset).drawn(host.draw).long_tailed(host.imbalance_ratio, max_count)
        state_file = _state_file(host, settings, subset.sha256, Path(job.state_dir))
        passengers = [cell for cell in cells if settings.methods[cell.method].is_passenger]
        folder = log_folder(state_file)
        if passengers and state_file.exists() and not folder.exists():
            print(f"{host}: begun without a log of its features, which {passengers[0].method} needs: anew", flush=True)
            state_file.unlink()
        run = CellRun(
            *(protocol, method, subset, host.seed, job.device, job.graph, host.precision),
            # A log that is there has no gap: whoever goes on with the run goes on with it.
            log_folder=folder if passengers or folder.exists() else None,
        )
        if not run.train(state_file, time.monotonic() + job.deadline - time.time()):
            print(f"{host}: saved after {run.epoch} of {protocol.epochs} epochs, out of time", flush=True)
            return

        def write(cell: Cell, result: dict[str, Any]) -> None:
            row = {**dataclasses.asdict(cell), **result, "settings": settings.of(cell)}
            row["data"] = {"source": subset.source, "sha256": subset.sha256}
            append_row(job.results, row)
            _say(cell, row, len(finished_cells(job.results, Cell)), total)

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
    alone = Method(loss=method.loss, sampler=method.sampler)
    name = next((name for name, other in settings.methods.items() if other == alone), None)
    if name is None:
        raise ValueError(f"{cell.method} rides on the run of {method.loss}: the settings need a method of it alone")
    return dataclasses.replace(cell, method=name)


def _state_file(host: Cell, settings: Settings, sha256: str, state_dir: Path) -> Path:
    """Its name carries the settings and the images, so that no stale one is taken."""
    content = json.dumps([settings.of(host), sha256])
    return state_dir / f"{host.file_name}-{hashlib.sha256(content.encode()).hexdigest()[:12]}.pt"
