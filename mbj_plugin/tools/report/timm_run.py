"""What a run folder of ``train_timm`` holds, read for the report; its model is run once more on its own data."""

from __future__ import annotations

import csv
import re
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from mbj_plugin.logit_adjustment import logit_adjusted
from mbj_plugin.tools.finished_run import Classifier, FinishedRun, memory_states, newest_checkpoint, saved_results
from mbj_plugin.tools.group_errors import group_errors
from mbj_plugin.tools.report.run import RunRecord, Scores, read_bank
from mbj_plugin.tools.trainer.dataset_summary import class_names
from mbj_plugin.tools.trainer.series import row_name

CLASSIFIERS = ("batch", "batch_adjusted", "memory")
#: Columns of summary.csv, and their figures; a later one of a figure counts where both are there.
CURVES = {"train_loss": "batch loss", "train_loss_batch": "batch loss", "train_loss_memory": "memory loss",
          "lr": "learning rate", "eval_tail_error": "tail error"}  # fmt: skip
ERROR = re.compile(r"eval_(?:(batch_adjusted|batch|memory)_)?error")


def read_run(run: RunRecord, folder: Path, args: Namespace) -> None:
    """Fill in everything that is there; ``args`` are those of the report's command."""
    with run.part("results.json"):
        _read_results(run, folder)
    with run.part("curves (summary.csv)"):
        _read_summary(run, folder)
    with run.part("checkpoint"):
        name, checkpoint = newest_checkpoint(folder)
        run.facts["checkpoint"] = f"{name} of epoch {checkpoint.get('epoch')}"
        run.memories = {kind: read_bank(state) for kind, state in memory_states(checkpoint).items()}
        if not args.no_model:
            with run.part("confusion"):
                _run_model(run, FinishedRun(folder, args.device, args.data))


def _read_results(run: RunRecord, folder: Path) -> None:
    results = saved_results(folder)
    run.class_counts = np.array(results["class_counts"], dtype=np.int64)
    run.class_names = results.get("class_names")
    run.settings, run.versions = dict(results["settings"]), dict(results["versions"])
    run.test_images = int(results.get("evaluation_images") or 0)
    run.chosen = "memory" if results["method"] == "mbj" else "batch"
    for key, each in results["classifiers"].items():
        by_class = np.array(each["per_class_error"], dtype=float)  # None, of a class without test images, is NaN
        if len(by_class) != len(run.class_counts):
            raise ValueError(f"it holds {len(by_class)} errors for {len(run.class_counts)} classes")
        run.classifiers[key] = Scores(row_name(key, results), each["errors"], by_class)
    run.facts = {
        "model": str(run.settings["model"]),
        "training images": f"{run.class_counts.sum():,} in {len(run.class_counts)} classes",
        "seconds": str(results["seconds"]),
    }


def _read_summary(run: RunRecord, folder: Path) -> None:
    with (folder / "summary.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("epoch")]
    if not rows:
        raise ValueError("it holds no epoch")
    for row in rows:
        if row.get("eval_top1"):
            row["eval_error"] = str(100 - float(row["eval_top1"]))
        recorded = {key.removeprefix("train_"): value for key, value in row.items() if key and "mbj/" in key}
        run.diagnostics.append({name: float(value) for name, value in recorded.items() if value})
        run.diagnostics[-1]["epoch"] = float(row["epoch"])
    for key in dict.fromkeys(key for row in rows for key in row if key):
        figure, line = CURVES.get(key, ""), ""
        if match := ERROR.fullmatch(key):
            figure, line = "error", run.classifiers[match[1]].name if match[1] in run.classifiers else match[1] or ""
        points = [(float(row["epoch"]), float(row[key])) for row in rows if row.get(key)]
        if figure and points:
            run.curves.setdefault(figure, {})[line] = ([x for x, _ in points], [y for _, y in points])


def _run_model(run: RunRecord, finished: FinishedRun) -> None:
    if finished.unfinished:
        run.missing.append(f"the run is not finished: its checkpoint is of {finished.unfinished}")
    assert finished.datasets is not None
    run.class_names = class_names(finished.datasets[1]) or run.class_names
    parts = list(zip(*finished.outputs(finished.evaluation_loader), strict=True))[:3]
    truth, logits, features = (torch.cat(part) for part in parts)
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
    for key in (key for key in CLASSIFIERS if key in maps or key == run.chosen):
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
        name = said.name if said else row_name(key, {"settings": vars(finished.args)})
        run.classifiers[key] = Scores(name, said.errors if said else errors, by_class, answers)
    run.classifiers = {key: run.classifiers[key] for key in CLASSIFIERS if key in run.classifiers}
