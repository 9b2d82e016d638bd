"""What a run folder of ``train_timm`` holds, read for the report; its model is run once more on its own data."""

from __future__ import annotations

import csv
import os
import re
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import resolve_data_config

from mbj_plugin.diagnostics.groups import group_errors
from mbj_plugin.logit_adjustment import logit_adjusted
from mbj_plugin.timm.counts import dataset_labels
from mbj_plugin.tools.finished_run import Classifier, FinishedRun, memory_states, newest_checkpoint, saved_results
from mbj_plugin.tools.report.embedding import shown_classes
from mbj_plugin.tools.report.run import Features, RunRecord, Scores, first_of_each, read_memories
from mbj_plugin.tools.trainer.dataset_summary import class_names

# Modules and their switches that keep Hugging Face's packages off the network.
_SWITCHES = (
    ("huggingface_hub.constants", "HF_HUB_OFFLINE"),
    ("datasets.config", "HF_HUB_OFFLINE"),
    ("datasets.config", "HF_DATASETS_OFFLINE"),
)
NAMES = {"batch": "{loss}", "batch_adjusted": "logit adjustment (tau 1)", "memory": "MBJ (memory classifier)"}
CURVES = {"train_loss_batch": "batch loss", "train_loss_memory": "memory loss", "lr": "learning rate"}
ERROR = re.compile(r"eval_(?:(batch_adjusted|batch|memory)_)?(?:(head|medium|tail)_)?error")


def read_run(run: RunRecord, folder: Path, args: Namespace) -> None:
    """Fill in everything that is there; ``args`` are those of the report's command."""
    with run.part("results.json"):
        _read_results(run, folder)
    with run.part("curves (summary.csv)"):
        _read_summary(run, folder)
    checkpoint = read_memories(run, folder, lambda: _checkpoint(run, folder), memory_states)
    if checkpoint is not None and not args.no_model:
        with run.part("confusion and embedding"), offline():
            _run_model(run, FinishedRun(folder, args.device, args.data), args.images_per_class)


def _read_results(run: RunRecord, folder: Path) -> None:
    results = saved_results(folder)
    run.class_counts = np.array(results["class_counts"], dtype=np.int64)
    run.class_names = results.get("class_names")
    run.settings, run.versions = dict(results.get("settings") or {}), dict(results.get("versions") or {})
    run.test_images = int(results.get("evaluation_images") or 0)
    run.chosen = "memory" if results.get("method") == "mbj" else "batch"
    for key, each in ({run.chosen: results} | results.get("classifiers", {})).items():
        by_class = np.array(each["per_class_error"], dtype=float)  # None, of a class without test images, is NaN
        if len(by_class) != len(run.class_counts):
            raise ValueError(f"it holds {len(by_class)} errors for {len(run.class_counts)} classes")
        run.classifiers[key] = Scores(_name(key, run), {k: float(v) for k, v in each["errors"].items()}, by_class)
    run.classifiers = {key: run.classifiers[key] for key in NAMES if key in run.classifiers}
    run.facts = {
        "model": str(run.settings.get("model")),
        "training images": f"{run.class_counts.sum():,} in {len(run.class_counts)} classes",
        "seconds": str(results.get("seconds")),
    }


def _name(key: str, run: RunRecord) -> str:
    loss = str(run.settings.get("loss", "ce")).rpartition(":")[2]
    return NAMES[key].format(loss={"ce": "cross-entropy"}.get(loss, loss))


def _read_summary(run: RunRecord, folder: Path) -> None:
    with (folder / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError("it holds no epoch")
    for row in rows:
        if row.get("eval_top1"):
            row["eval_error"] = str(100 - float(row["eval_top1"]))
        row["train_loss_batch"] = row.get("train_loss_batch") or row.get("train_loss") or ""
    for key in dict.fromkeys(key for row in rows for key in row if key):
        curve = CURVES.get(key)
        if match := ERROR.fullmatch(key):
            curve = f"error, {match[2] or 'all'}" + (f" ({_name(match[1], run)})" if match[1] else "")
        points = [(float(row["epoch"]), float(row[key])) for row in rows if row.get("epoch") and row.get(key)]
        if curve and points:
            run.curves[curve] = ([x for x, _ in points], [y for _, y in points])


def _checkpoint(run: RunRecord, folder: Path) -> dict[str, Any]:
    name, checkpoint, broken = newest_checkpoint(folder)
    for each in broken:
        run.missing.append(f"checkpoint: cannot read {each}, it is no checkpoint or cut short")
    run.facts["checkpoint"] = f"{name} of epoch {checkpoint.get('epoch')}"
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


def _run_model(run: RunRecord, finished: FinishedRun, images_per_class: int) -> None:
    if finished.unfinished:
        run.missing.append(f"the run is not finished: its checkpoint is of {finished.unfinished}")
    assert finished.datasets is not None
    run.class_names = class_names(finished.datasets[1]) or run.class_names
    truth, logits, features = _outputs(finished, finished.evaluation_loader)
    run.truth, run.test_images = truth.numpy(), len(truth)
    if run.class_counts is None:
        run.class_counts, run.chosen = finished.counts, "memory" if memory_states(finished.checkpoint) else "batch"
    maps: dict[str, Classifier] = {}
    with run.part("classifiers"):
        trained = finished.classifiers()
        maps = {"memory" if key == "mbj" else key: pair for key, pair in trained.items()}
        if finished.adjusted_already() == 0:
            maps["batch_adjusted"] = logit_adjusted(*trained["batch"], finished.counts.tolist())
    images = np.bincount(run.truth, minlength=len(finished.counts))
    for key in (key for key in NAMES if key in maps or key == run.chosen):
        answers = (logits if key == run.chosen else F.linear(features, *maps[key])).argmax(1).numpy()
        wrong = np.bincount(run.truth[answers != run.truth], minlength=len(images))
        errors = group_errors(images, wrong, finished.counts)
        said = run.classifiers.get(key)
        if said and abs(errors["error"] - said.errors["error"]) > 0.05:
            run.missing.append(
                f"the model gives an error of {errors['error']:.2f} % now, results.json says "
                f"{said.errors['error']:.2f} %: the checkpoint is of another epoch, or the images have changed"
            )
        by_class = np.where(images > 0, 100 * wrong / np.maximum(images, 1), np.nan)
        run.classifiers[key] = Scores(_name(key, run), said.errors if said else errors, by_class, answers)
    run.classifiers = {key: run.classifiers[key] for key in NAMES if key in run.classifiers}
    run.facts["image size"] = " x ".join(
        map(str, resolve_data_config(vars(finished.args), model=finished.model)["input_size"])
    )
    with run.part("embedding"):
        if not features.shape[1]:
            raise ValueError(f"{finished.args.model} has no classifier whose input could be shown")
        chosen = first_of_each(run.truth, np.unique(run.truth), images_per_class)
        run.test_features = Features(features[chosen].numpy(), run.truth[chosen])
        classes = shown_classes(run.class_counts, run.memories)
        chosen = first_of_each(dataset_labels(finished.datasets[0]), classes, images_per_class)
        labels, _, rows = _outputs(finished, finished.training_loader(chosen.tolist()))
        run.train_features = Features(rows.numpy(), labels.numpy())


def _outputs(finished: FinishedRun, loader: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(N,) true classes, (N, C) logits and (N, D) inputs of the classifier."""
    labels, logits, features, _ = zip(*finished.outputs(loader), strict=True)
    return torch.cat(labels), torch.cat(logits), torch.cat(features)
