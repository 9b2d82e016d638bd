"""Time and peak memory of L_memory (Eq. 2) at iNaturalist18's size: as shipped, in our own chunks, at once, and of a
sample, its draw and the enqueue included.

Each variant runs in a process of its own: ``python benchmarks/speed/memory_loss.py [--dim 256] [--repeats 3]``.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from mbj_plugin import FeatureMemoryLoss, functional, memory_cross_entropy

ROWS, CLASSES, SAMPLE, BATCH = 25_000, 8_142, 250, 32
VARIANTS = ("inputs only", "as shipped", "for older torch", "at once", "sample")


def loss_of(variant: str, features: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    if variant == "inputs only":
        return weight.sum()
    if variant == "for older torch":
        functional.TORCH_CHUNKS = False
    if variant == "at once":
        functional.CHUNK_LOGITS = ROWS * CLASSES
    return memory_cross_entropy(features, labels, weight)


def measure(variant: str, dim: int, repeats: int) -> None:
    memory = FeatureMemoryLoss([10] * CLASSES, dim, ROWS, sample=SAMPLE)
    features, labels = memory.bank.rows.normal_(), memory.bank.labels.random_(CLASSES)
    batch = torch.randn(BATCH, dim), torch.randint(0, CLASSES, (BATCH,))
    weight = torch.nn.Parameter(torch.randn(CLASSES, dim) / dim**0.5)
    seconds = []
    for _ in range(repeats):
        weight.grad, begin = None, time.perf_counter()
        loss = memory(*batch, weight) if variant == "sample" else loss_of(variant, features, labels, weight)
        loss.backward()
        seconds.append(time.perf_counter() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{variant:<28} {min(seconds):8.2f} s   peak {peak:7.0f} MiB   loss {loss.item():.6f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dim", type=int, default=256, help="length of a feature (default: 256)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, the fastest counts (default: 3)")
    parser.add_argument("--variant", choices=VARIANTS, help="measure this one alone, in this process")
    args = parser.parse_args()
    if args.variant:
        measure(args.variant, args.dim, args.repeats)
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; {ROWS} x {CLASSES} logits, D = {args.dim}")
    for variant in VARIANTS:
        own = [sys.executable, __file__, "--variant", variant]
        subprocess.run([*own, "--dim", str(args.dim), "--repeats", str(args.repeats)], check=True)


if __name__ == "__main__":
    main()
