"""Which gradients does the memory's loss share with the batch loss? Cosine and norm per layer, before and after START.

    python -m benchmarks.retrieval.gradients --data FOLDER --dataset omniglot_short_val --tail-size 2 --method mbj_w \\
        --output docs/results/gradients.json

trains one cell of the settings and, at the end of some epochs, asks a copy of the model for both losses on one batch.
Before the start the memory's loss trains nothing; what it would do is measured all the same.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import fastreid.data.build
import torch
from fastreid.engine import DefaultTrainer
from fastreid.engine.train_loop import HookBase
from fastreid.utils.env import seed_all_rng
from fastreid.utils.events import EventStorage
from torch import Tensor, nn

from benchmarks.retrieval.runner import _versions
from benchmarks.retrieval.settings import Cell, load_settings
from mbj_plugin.fastreid.collect import mbj_heads
from mbj_plugin.tools.fastreid.demo import quiet_fastreid


def layer_of(parameter: str) -> str:
    """The layer that a parameter is counted to: its name up to the first number, ``backbone.model.blocks.3``."""
    parts = parameter.split(".")[:-1]
    number = next((place for place, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return ".".join(parts[: number + 1])


def shared(model: nn.Module, batch: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Gradients of the two losses of a copy of ``model``, which itself stays as it is.

    Args:
        model: in training mode, with a memory.
        batch: of the training loader.

    Returns:
        For each layer and for "all": "batch" and "memory", the norms of the gradients of the batch loss and of the
        memory's loss (with eta), and "cosine" between the two; 0 where one is 0.
    """
    model = copy.deepcopy(model)
    for head in mbj_heads(model):
        for memory in head.memories.values():
            memory.start = 0
    with EventStorage():  # fast-reid's heads log into one
        losses = model(copy.deepcopy(batch))  # fast-reid normalises the images in place
    memory_loss = losses.pop("loss_mbj")
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    parameters = [value for _, value in named]
    ours = torch.autograd.grad(memory_loss, parameters, retain_graph=True, allow_unused=True)
    theirs = torch.autograd.grad(sum(losses.values()), parameters, allow_unused=True)
    layers: dict[str, list[Tensor]] = defaultdict(lambda: [torch.zeros(3, dtype=torch.float64)])
    for (name, value), a, b in zip(named, theirs, ours, strict=True):
        a, b = ((torch.zeros_like(value) if gradient is None else gradient).double() for gradient in (a, b))
        products = torch.stack([(a * a).sum(), (b * b).sum(), (a * b).sum()]).cpu()
        for layer in (layer_of(name), "all"):
            layers[layer].append(products)
    return {layer: _summary(torch.stack(products).sum(0)) for layer, products in layers.items()}


def _summary(products: Tensor) -> dict[str, float]:
    batch, memory = products[:2].sqrt().tolist()
    cosine = float(products[2]) / (batch * memory) if batch and memory else 0.0
    return {"batch": batch, "memory": memory, "cosine": cosine}


class Probe(HookBase):
    """Measures behind chosen iterations, on the run's own batches.

    Args:
        at: iterations.
    """

    def __init__(self, at: set[int]) -> None:
        self.at = at
        self.measured: list[dict[str, Any]] = []

    def after_step(self) -> None:
        """Take the next batch of the loader; the run goes on with the one behind it."""
        iteration = self.trainer.iter + 1
        if iteration in self.at:
            batch = next(self.trainer._trainer._data_loader_iter)
            self.measured.append({"iteration": iteration, "layers": shared(self.trainer.model, batch)})


def measure(cell: Cell, data: str, output_dir: str, points: int, threads: int = 1) -> dict[str, Any]:
    """Train a cell and measure ``points`` times, evenly spread over its epochs.

    Raises:
        ValueError: for a method without a memory.
    """
    settings = load_settings()
    if "MBJ" not in settings.methods[cell.method]:
        raise ValueError(f"method {cell.method} has no memory, whose gradients could be compared")
    torch.set_num_threads(threads)
    fastreid.data.build._root = data
    quiet_fastreid()
    cfg = settings.config(cell)
    cfg.OUTPUT_DIR = output_dir
    cfg.freeze()
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    seed_all_rng(cell.seed)
    trainer = DefaultTrainer(cfg)
    probe = Probe({trainer.max_iter * (point + 1) // (points + 1) for point in range(points)})
    trainer.register_hooks([probe])
    trainer.train()
    facts = {"start": mbj_heads(trainer.model)[0].start, "iterations": trainer.max_iter}
    cell_facts = {name: getattr(cell, name) for name in ("dataset", "num_head", "tail_size", "method", "seed")}
    return cell_facts | facts | {"versions": _versions(), "measured": probe.measured}


def table(result: dict[str, Any]) -> str:
    """Markdown: a line per layer, of each iteration the cosine and the ratio of the norms, memory / batch."""
    measured = result["measured"]
    heads = [f"{m['iteration']}{'' if m['iteration'] > result['start'] else ' (before)'}" for m in measured]
    lines = ["| Layer | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for layer in measured[0]["layers"]:
        row = [m["layers"][layer] for m in measured]
        cells = [f"{r['cosine']:+.2f}, {r['memory'] / r['batch'] if r['batch'] else 0:.2f}" for r in row]
        lines.append(f"| {layer} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="FOLDER", help="folder of the data sets")
    parser.add_argument("--dataset", default="omniglot_short_val", help="(default: %(default)s)")
    parser.add_argument("--num-head", type=int, default=20, metavar="H", help="(default: 20)")
    parser.add_argument("--tail-size", type=int, default=2, metavar="S", help="(default: 2)")
    parser.add_argument("--method", default="mbj_w", help="(default: mbj_w)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--points", type=int, default=5, help="measurements (default: 5)")
    parser.add_argument("--state-dir", default="output/gradients", help="fast-reid's folder (default: %(default)s)")
    parser.add_argument("--output", help="JSON file")
    args = parser.parse_args(argv)
    try:
        (cell,) = load_settings().cells(args.dataset, [args.num_head], [args.method], [args.seed], args.tail_size)
        result = measure(cell, args.data, args.state_dir, args.points)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"gradients: {error}")
    if args.output:
        Path(args.output).write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
