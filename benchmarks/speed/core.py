"""What the memory costs, as ratios: ``python benchmarks/speed/core.py [--repeats 50] [--output FILE]``.

Each row is the time of one thing over that of another, both timed in turn in one process, as a line of JSON with
versions and device. ``--only enqueue`` needs the peers: ``pip install -e '.[speed]'``.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from mbj_plugin import FeatureMemoryLoss, MemoryBank, __version__

SHAPES = ((32, 64, 500), (64, 2048, 3500), (128, 2048, 25_000))  # rows, their length, slots
CLASSES, ROWS, SLOTS, DRAWN = 8142, 32, 5000, 500  # of iNaturalist18's step, with a fifth of its memory
Call = Callable[[], object]
Pair = tuple[str, Call, Call]


def in_turn(first: Call, second: Call, repeats: int, wait: Call = lambda: None) -> tuple[float, float]:
    """Median seconds of each of two calls that take turns; once before that they run untimed.

    Args:
        first, second: what is timed.
        repeats: calls of each, >= 1.
        wait: for the device.

    Returns:
        Seconds of the first and of the second.
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 1):
        for call, mine in zip((first, second), seconds, strict=True):
            wait()
            began = time.perf_counter()
            call()
            wait()
            if turn:
                mine.append(time.perf_counter() - began)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def enqueue_pairs(device: str) -> Iterator[Pair]:
    """The enqueue against those of pytorch-metric-learning and lightly, which check no row and save no cursor."""
    try:
        from lightly.models.modules.memory_bank import MemoryBankModule
        from pytorch_metric_learning.losses import ContrastiveLoss, CrossBatchMemory
    except ImportError as error:
        raise SystemExit(
            f"{error}: pip install -e '.[speed]', or leave the rows out with --only start sample"
        ) from None
    for count, dim, slots in SHAPES:
        rows, labels = torch.randn(count, dim, device=device), torch.randint(0, 100, (count,), device=device)
        bank = MemoryBank(slots, dim).to(device)
        cross_batch = CrossBatchMemory(ContrastiveLoss(), dim, slots).to(device)
        module = MemoryBankModule((slots, dim)).to(device)
        shape = f"({count} x {dim}, M {slots})"

        ours = partial(bank.enqueue, rows, labels)
        add = partial(cross_batch.add_to_memory, rows, labels, count)
        yield f"enqueue / CrossBatchMemory.add_to_memory {shape}", ours, add
        yield f"enqueue / MemoryBankModule(update=True) {shape}", ours, partial(module, rows, update=True)


def loss_pairs(device: str, dim: int, **kwargs: dict[str, Any]) -> tuple[Call, Call]:
    """Steps of a classifier, each with a full memory of its own: one for each set of a loss's arguments."""
    features = torch.randn(ROWS, dim, device=device)
    labels = torch.randint(0, CLASSES, (ROWS,), device=device)
    weight = torch.nn.Parameter(torch.randn(CLASSES, dim, device=device) / dim**0.5)

    def step_with(**arguments: Any) -> Call:
        memory = FeatureMemoryLoss([10] * CLASSES, dim, SLOTS, **arguments).to(device)
        memory.bank.enqueue(torch.randn(SLOTS, dim, device=device), torch.randint(0, CLASSES, (SLOTS,), device=device))

        def step() -> None:
            weight.grad = None
            batch_loss = torch.nn.functional.cross_entropy(features @ weight.T, labels)
            (batch_loss + memory(features, labels, weight)).backward()

        return step

    first, second = (step_with(**arguments) for arguments in kwargs.values())
    return first, second


def pairs(only: list[str], device: str, dim: int) -> Iterator[Pair]:
    """What is compared."""
    shape = f"(B {ROWS}, C {CLASSES}, D {dim}, M {SLOTS})"
    if "enqueue" in only:
        yield from enqueue_pairs(device)
    if "start" in only:
        yield f"before the start / eta 0 {shape}", *loss_pairs(device, dim, before={"start": 10**9}, off={"eta": 0.0})
        yield f"before the start / after {shape}", *loss_pairs(device, dim, before={"start": 10**9}, after={})
    if "sample" in only:
        yield f"sample {DRAWN} / whole {shape}", *loss_pairs(device, dim, part={"sample": DRAWN}, whole={})


def versions() -> dict[str, str]:
    """Of what is timed."""
    found = {"mbj_plugin": __version__, "torch": torch.__version__, "python": platform.python_version()}
    for peer in ("pytorch-metric-learning", "lightly"):
        try:
            found[peer] = metadata.version(peer)
        except metadata.PackageNotFoundError:
            continue
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20, help="calls of each (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=256, help="length of a feature in steps (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (default: %(default)s)")
    parser.add_argument(
        "--only", nargs="+", choices=("enqueue", "start", "sample"), default=["enqueue", "start", "sample"]
    )
    parser.add_argument("--output", type=Path, help="append the rows to this file as well")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    cuda = args.device.startswith("cuda")
    device = torch.cuda.get_device_name() if cuda else f"cpu, {args.threads} thread(s)"
    for what, first, second in pairs(args.only, args.device, args.dim):
        seconds = in_turn(first, second, args.repeats, torch.cuda.synchronize if cuda else lambda: None)
        row = {
            "what": what,
            "ratio": round(seconds[0] / seconds[1], 4),
            "microseconds": [round(1e6 * s, 1) for s in seconds],
            "repeats": args.repeats,
            "device": device,
            "versions": versions(),
        }
        print(json.dumps(row), flush=True)
        if args.output:
            with args.output.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
