"""What a run folder of ``train_timm`` holds, read for the report; its model is run once more on its own data."""

from __future__ import annotations

import csv
import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from timm.data import resolve_data_config
from torch import nn
from torch.utils.data import DataLoader, Subset

from mbj_plugin.diagnostics.groups import group_errors
from mbj_plugin.timm.counts import dataset_labels
from mbj_plugin.timm.diagnostics import input_layers
from mbj_plugin.tools.finished_run import (
    evaluated_weights,
    memory_states,
    newest_checkpoint,
    run_images,
    saved_args,
    saved_results,
)
from mbj_plugin.tools.report.embedding import shown_classes
from mbj_plugin.tools.report.run import Features, Run, first_of_each, read_memories
from mbj_plugin.tools.trainer import build
from mbj_plugin.tools.trainer.dataset_summary import class_names

# Modules and their switches that keep Hugging Face's packages off the network.
_SWITCHES = (
    ("huggingface_hub.constants", "HF_HUB_OFFLINE"),
    ("datasets.config", "HF_HUB_OFFLINE"),
    ("datasets.config", "HF_DATASETS_OFFLINE"),
)
CURVES = {
    "train_loss_batch": "batch loss",
    "train_loss_memory": "memory loss",
    "eval_error": "error, all",
    "eval_head_error": "error, head",
    "eval_medium_error": "error, medium",
    "eval_tail_error": "error, tail",
    "lr": "learning rate",
}


def read_run(run: Run, folder: Path, args: Namespace) -> None:
    """Fill in everything that is there; ``args`` are those of the report's command."""
    with run.part("results.json"):
        _read_results(run, folder)
    with run.part("curves (summary.csv)"):
        _read_summary(run, folder)
    checkpoint = read_memories(run, folder, _checkpoint, memory_states)
    if checkpoint and not args.no_model:
        with run.part("confusion and embedding"), offline():
            _run_model(run, saved_args(folder, args.device, args.data), checkpoint, args.images_per_class)


def _read_results(run: Run, folder: Path) -> None:
    results = saved_results(folder)
    run.errors = {key: float(value) for key, value in results["errors"].items()}
    run.class_errors = np.array(results["per_class_error"], dtype=float)
    run.class_counts = np.array(results["class_counts"], dtype=np.int64)
    run.settings, run.versions = dict(results.get("settings") or {}), dict(results.get("versions") or {})
    run.facts = {
        "method": str(results.get("method")),
        "model": str(run.settings.get("model")),
        "training images": f"{run.class_counts.sum():,} in {len(run.class_counts)} classes",
        "seconds": str(results.get("seconds")),
    }


def _read_summary(run: Run, folder: Path) -> None:
    with (folder / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError("it holds no epoch")
    for row in rows:
        if row.get("eval_top1"):
            row["eval_error"] = str(100 - float(row["eval_top1"]))
        if not row.get("train_loss_batch") and row.get("train_loss"):
            row["train_loss_batch"] = row["train_loss"]
    for key, curve in CURVES.items():
        points = [(float(row["epoch"]), float(row[key])) for row in rows if row.get("epoch") and row.get(key)]
        if points:
            run.curves[curve] = ([x for x, _ in points], [y for _, y in points])


def _checkpoint(run: Run, folder: Path) -> dict[str, Any]:
    name, checkpoint, broken = newest_checkpoint(folder)
    for each in broken:
        run.missing.append(f"checkpoint: cannot read {each}, it is no checkpoint or cut short")
    if name:
        run.facts["checkpoint"] = f"{name}, epoch {checkpoint.get('epoch')}"
    return checkpoint


@contextmanager
def offline() -> Iterator[None]:
    """Hugging Face's hub, which ``hf-hub:`` models and ``hfds/`` data sets ask, is asked for what is on disk only."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, HF_HUB_OFFLINE="1"))  # read by what is imported only now
        for module, name in _SWITCHES:
            if hasattr(sys.modules.get(module), name):
                stack.enter_context(mock.patch.object(sys.modules[module], name, True))
        yield


def _run_model(run: Run, args: Namespace, checkpoint: dict[str, Any], images_per_class: int) -> None:
    device = torch.device(args.device)
    datasets = build.make_datasets(args)
    model = build.make_model(args, device)
    model.load_state_dict(evaluated_weights(checkpoint))
    loaders = build.make_loaders(args, model, datasets, device)
    counts = loaders.counts
    run.class_names = class_names(datasets[1])
    layers: list[nn.Module] = []
    with run.part("embedding"):
        layers = input_layers(model)
    run.truth, run.predicted, features = _predict(model, layers, loaders.evaluation, device)
    images = np.bincount(run.truth, minlength=args.num_classes)
    wrong = np.bincount(run.truth[run.truth != run.predicted], minlength=args.num_classes)
    errors = group_errors(images, wrong, counts)
    if run.class_counts is None:
        run.class_counts, run.class_errors, run.errors = counts, 100 * wrong / np.maximum(images, 1), errors
    elif abs(errors["error"] - run.errors["error"]) > 0.05:
        run.missing.append(
            f"the model gives an error of {errors['error']:.2f} % now, results.json says {run.errors['error']:.2f} %: "
            "the checkpoint is of another epoch, or the images have changed"
        )
    if features is not None:
        chosen = first_of_each(run.truth, np.unique(run.truth), images_per_class)
        run.test_features = Features(features[chosen], run.truth[chosen])
        with run.part("features of training images"):
            train, labels = datasets[0], dataset_labels(datasets[0])
            train.transform = datasets[1].transform
            chosen = first_of_each(labels, shown_classes(run.class_counts, run.memories), images_per_class)
            loader = DataLoader(Subset(train, chosen.tolist()), args.batch_size, num_workers=args.workers)
            truth, _, rows = _predict(model, layers, loader, device)
            run.train_features = None if rows is None else Features(rows, truth)
    config = resolve_data_config(vars(args), model=model)
    run.facts["image size"] = " x ".join(map(str, config["input_size"]))


def _predict(
    model: nn.Module, layers: list[nn.Module], loader: Any, device: torch.device
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(N,) true classes, (N,) answers and (N, D) inputs of the classifier's ``layers``, None where there are none."""
    truth, predicted, features = [], [], []
    for labels, logits, inputs in run_images(model, layers, loader, device):
        truth.append(labels.numpy())
        predicted.append(logits.argmax(1).numpy())
        features.append(inputs.numpy())
    return np.concatenate(truth), np.concatenate(predicted), np.concatenate(features) if layers else None
