"""What the diagnostics cost: ``python benchmarks/speed/diagnostics.py [--epochs 6] [train_timm's own flags]``.

Trains one job, by default ResNet-32 on 32 x 32 noise at batch 128 with MBJ, and gives the seconds spent inside the
diagnostics as a share of the whole training. On a CPU the seconds are the process's own, so that other processes of a
shared machine do not count.
"""

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import timm
import torch
from PIL import Image

from mbj_plugin.longtail import exponential_counts
from mbj_plugin.timm import diagnostics as monitors
from mbj_plugin.tools.trainer import run as preparation
from mbj_plugin.tools.trainer import train as trainer
from mbj_plugin.tools.trainer.args import parse_args

CLASSES, LARGEST, RATIO = 10, 600, 100


def draw(root: Path) -> None:
    """A long-tailed ImageFolder of noise, in CIFAR's size."""
    rng = np.random.default_rng(0)
    for split, counts in (("train", exponential_counts(CLASSES, LARGEST, RATIO)), ("validation", [20] * CLASSES)):
        for label, count in enumerate(counts):
            folder = root / split / str(label)
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")


def default_job(root: Path) -> list[str]:
    draw(root)
    return [
        *(str(root), "--model", "resnet32_cifar", "--input-size", "3", "32", "32", "-b", "128", "-j", "0"),
        *("--crop-pad", "4", "--sched", "multistep", "--decay-milestones", "1", "--warmup-epochs", "0", "--lr", "0.1"),
    ]


class Clock:
    """Seconds inside the calls that it wraps, the device's work included."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def wrap(self, owner: Any, name: str, label: str) -> None:
        call: Callable = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = now()
            result = call(*args, **kwargs)
            self.seconds[label] = self.seconds.get(label, 0.0) + now() - begin
            return result

        setattr(owner, name, timed)


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=6)
    args, job = parser.parse_known_args()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    clock = Clock()
    clock.wrap(monitors.EpochDiagnostics, "report", "at the end of each epoch")
    clock.wrap(preparation, "make_monitor", "once, probe images")
    clock.wrap(monitors.EpochDiagnostics, "__init__", "once, TensorBoard")
    with tempfile.TemporaryDirectory() as folder:
        job = job or default_job(Path(folder) / "images")
        argv = [*job, "--mbj", "--epochs", str(args.epochs), "--output", folder, "--no-progress"]
        begin = now()
        trainer.train(parse_args(argv))
        total = now() - begin
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, timm {timm.__version__}, {device}; {total:.1f} s, {args.epochs} epochs")
    for label, seconds in clock.seconds.items():
        print(f"{label:<26} {seconds:8.3f} s  {100 * seconds / total:6.3f} %")


if __name__ == "__main__":
    main()
