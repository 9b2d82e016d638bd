"""What many ranks cost: each a process on this machine's CPU, talking by gloo."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.speed.timing import in_turn
from mbj_plugin import FeatureMemoryLoss, sampling

DIM, CLASSES, ROWS, SLOTS = 2048, 751, 32, 3500


def rank_rows(repeats: int, worlds: tuple[int, ...] = (2, 4)) -> Iterator[dict[str, Any]]:
    """For each number of ranks: the exchange of features and labels against a call of the loss that holds it."""
    for world in worlds:
        with tempfile.TemporaryDirectory() as folder:
            mp.start_processes(_time, (world, repeats, folder), nprocs=world, start_method="fork")
            seconds = torch.load(Path(folder) / "seconds.pt")
        received = (world - 1) * ROWS * (4 * DIM + 8)
        yield {
            "what": f"exchange / call of MBJ-F that holds it, {world} ranks on this CPU (B {ROWS} a rank, D {DIM}, "
            f"C {CLASSES}, M {SLOTS}; {received / 1e6:.2f} MB received a rank and step)",
            "seconds": seconds,
        }


def _time(rank: int, world: int, repeats: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    memory = FeatureMemoryLoss([10] * CLASSES, DIM, SLOTS, norm="max")
    features, labels = torch.randn(ROWS, DIM), torch.randint(0, CLASSES, (ROWS,))
    weight = torch.nn.Parameter(torch.randn(CLASSES, DIM))

    def exchange() -> None:
        sampling.check_even(features)
        sampling.all_gather(features), sampling.all_gather(labels)

    seconds = in_turn(exchange, lambda: memory(features, labels, weight).backward(), repeats)
    if rank == 0:
        torch.save(seconds, f"{folder}/seconds.pt")
    dist.destroy_process_group()
