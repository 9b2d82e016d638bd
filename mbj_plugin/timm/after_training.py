"""``tools/after_training.py``: what costs nothing after training, side by side, for finished runs of ``train_timm``."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from mbj_plugin.after_training import (
    logit_adjusted,
    multiplicatively_adjusted,
    nearest_class_mean,
    retrained,
    tau_normalized,
)
from mbj_plugin.diagnostics.groups import group_errors
from mbj_plugin.files import whole
from mbj_plugin.timm.finished_run import evaluated_weights, memory_states, newest_checkpoint, run_images, saved_args
from mbj_plugin.timm.head import Heads, classifier_layers
from mbj_plugin.timm.trainer import build
from mbj_plugin.timm.trainer.data import check_same_classes, make_dataset
from mbj_plugin.timm.trainer.error_table import TABLES, error_table

METHODS = ("as-trained", "logit-adjustment", "multiplicative", "tau-norm", "class-mean", "retrained")
#: Strengths that ``--choose-on`` tries.
STRENGTHS = {
    "logit-adjustment": np.arange(0, 3.01, 0.1),
    "multiplicative": np.arange(0, 0.501, 0.025),
    "tau-norm": np.arange(0, 3.01, 0.1),
}
COLUMNS = ("error", "head", "medium", "tail", "many_shot", "medium_shot", "few_shot")
Classifier = tuple[Tensor, Tensor]
#: Of each classifier, the errors of :func:`group_errors`, and its tau or gamma.
Results = dict[str, tuple[dict[str, float], float | None]]


@dataclass
class Images:
    """Inputs (N, D) of the classifier and labels (N,) of a set."""

    features: Tensor
    labels: Tensor

    def wrong(self, classifier: Classifier, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
        """(C,) images of each class, and (C,) of them that the classifier gets wrong."""
        answers = [F.linear(rows, *classifier).argmax(1) for rows in self.features.split(4096)]
        missed = self.labels[torch.cat(answers) != self.labels]
        counts = [torch.bincount(labels, minlength=num_classes).numpy() for labels in (self.labels, missed)]
        return counts[0], counts[1]


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description="Takes the finished run as it is, and puts other classifiers on its features: logit adjustment, "
        "additive and multiplicative, tau-normalisation, the nearest class mean, and one that is retrained from the "
        "memory in the checkpoint. Prints the test error of all of them, by class size; trains no feature."
    )
    p.add_argument(
        "run", nargs="+", metavar="RUN", help="folder of a run of train_timm; of several (seeds), mean and spread"
    )
    p.add_argument("--tau", type=float, default=1.0, help="of logit adjustment and tau-norm (default: %(default)s)")
    p.add_argument("--gamma", type=float, default=0.2, help="of multiplicative adjustment (default: %(default)s)")
    p.add_argument(
        "--choose-on",
        metavar="SPLIT",
        help="choose tau and gamma by the mean error of the classes on this split of the run's data, on which the run "
        "was neither trained nor evaluated (the digits have 'validation')",
    )
    p.add_argument(
        "--write", choices=METHODS[1:], help="write a checkpoint with this classifier, which stock timm loads"
    )
    p.add_argument("--output", metavar="FILE", help="of --write (default: METHOD.pth.tar in RUN)")
    p.add_argument("--no-images", action="store_true", help="with --write: write without any image, print no table")
    p.add_argument(
        "--table", choices=TABLES, default="text", help="for the console, or to paste (default: %(default)s)"
    )
    p.add_argument("--data", metavar="FOLDER", help="the images, where the run's own settings do not lead to them")
    p.add_argument("--device", default="cpu", help="where the model runs (default: %(default)s)")
    return p


def main(argv: list[str] | None = None) -> None:
    """The command."""
    args = parser().parse_args(argv)
    logging.getLogger("timm").setLevel(logging.WARNING)
    try:
        _main(args)
    except ValueError as error:
        sys.exit(f"after_training: error: {error}")


def _main(args: Namespace) -> None:
    _check(args)
    results: list[Results] = []
    for folder in args.run:
        run = FinishedRun(Path(folder), args)
        rows = _classifiers(run, args)
        if not args.no_images:
            results.append({name: (run.errors(new), strength) for name, (new, strength) in rows.items()})
    if len(results) == 1 and args.table == "text":
        print(table(results[0]))
    elif results:
        errors = {name: [each[name][0] for each in results if name in each] for name in results[0]}
        print(error_table(errors, args.table))
    if args.write:
        path = Path(args.output or Path(folder) / f"{args.write}.pth.tar")
        run.write(rows[args.write][0], path)
        print(f"Written: {path}")


def _classifiers(run: FinishedRun, args: Namespace) -> dict[str, tuple[Classifier, float | None]]:
    if not args.no_images:
        run.read_images(args.choose_on)
    rows = {}
    for method in METHODS:
        try:
            rows[method] = run.classifier(method, args)
        except ValueError as error:
            if method == args.write:
                raise
            if not args.no_images:
                print(f"{method} is left out: {error}")
    return rows


def _check(args: Namespace) -> None:
    for folder in args.run:
        if not Path(folder).is_dir():
            raise ValueError(f"there is no folder {folder}: give the folder that a run of train_timm wrote")
    if args.write and len(args.run) > 1:
        raise ValueError(f"--write writes the checkpoint of one run, got {len(args.run)}")
    for name in ("tau", "gamma"):
        if not 0 <= getattr(args, name) < float("inf"):
            raise ValueError(f"--{name} must be a finite number >= 0, got {getattr(args, name)}")
    if args.output and not args.write:
        raise ValueError("--output is the file of --write: say which classifier to write")
    if args.no_images and (not args.write or args.choose_on or args.write == "class-mean"):
        raise ValueError("--no-images needs a --write that takes no image: no class-mean, and no --choose-on")


class FinishedRun:
    """The run: its model and memory, and once they are read, the features of its images.

    Args:
        folder: of the run.
        args: of the command.

    Raises:
        ValueError: for a folder that is no run of ``train_timm``, or a model without a plain classifier.
    """

    def __init__(self, folder: Path, args: Namespace) -> None:
        name, self.checkpoint, _ = newest_checkpoint(folder)
        if not name:
            raise ValueError(f"cannot read a checkpoint in {folder}: they are cut short")
        self.args = saved_args(folder, args.device, args.data)
        with build.blame(f"--device {args.device}"):
            self.device = torch.device(args.device)
            torch.zeros(1, device=self.device)
        if not args.no_images:
            self.datasets = build.make_datasets(self.args)
        self.model = build.make_model(self.args, self.device)
        with build.blame(f"{name} does not fit the model of args.yaml"):
            self.model.load_state_dict(evaluated_weights(self.checkpoint))
        layers: Any = classifier_layers(self.model)
        self.layers, heads = layers, Heads(layers)
        weight, bias = heads.affine()
        self.weight = weight.detach().float().cpu()
        self.bias = None if bias is None else bias.detach().float().cpu()
        self.evaluation: Images | None = None
        self.validation: Images | None = None
        if args.no_images:
            self.counts = _counts_of_results(folder)

    def read_images(self, validation_split: str | None) -> None:
        """Run the model on the training images without augmentation, the evaluation set, and the split to choose on."""
        train, evaluation = self.datasets
        if validation_split is not None:
            validation = self._validation_set(validation_split)
        loaders = build.make_loaders(self.args, self.model, self.datasets, self.device)
        self.counts = loaders.counts
        self.evaluation = self._features(loaders.evaluation)
        train.transform = evaluation.transform
        self.train = self._features(self._loader(train))
        if validation_split is not None:
            validation.transform = evaluation.transform
            self.validation = self._features(self._loader(validation))

    def _validation_set(self, split: str) -> Any:
        for kind, used in (("trained", self.args.train_split), ("evaluated", self.args.val_split)):
            if split == used:
                raise ValueError(f"--choose-on {split}: the run was {kind} on that split, name another one")
        dataset = make_dataset(self.args, split, False, build.image_mode(self.args))
        check_same_classes(self.datasets[0], dataset)
        return dataset

    def _loader(self, dataset: Any) -> DataLoader:
        return DataLoader(dataset, self.args.batch_size, num_workers=self.args.workers)

    def _features(self, loader: Any) -> Images:
        labels, features = [], []
        for batch_labels, logits, inputs in run_images(self.model, self.layers, loader, self.device):
            expected = (
                F.linear(inputs, self.weight, self.bias) if inputs.shape[1] == self.weight.shape[1] else logits + 1
            )
            if not torch.allclose(expected, logits, rtol=0.01, atol=0.01 * float(logits.abs().max())):
                raise ValueError(
                    f"the logits of {self.args.model} are not what its classifier computes from its input (it combines "
                    "several heads, or scales them): another classifier cannot take its place"
                )
            labels.append(batch_labels)
            features.append(inputs)
        return Images(torch.cat(features), torch.cat(labels))

    def classifier(self, method: str, args: Namespace) -> tuple[Classifier, float | None]:
        """The method's classifier, and its tau or gamma where it has one.

        Raises:
            ValueError: where this run has not what the method needs.
        """
        adjust: dict[str, Callable[[float], Classifier]] = {
            "logit-adjustment": partial(logit_adjusted, self.weight, self.bias, self.counts.tolist()),
            "multiplicative": partial(multiplicatively_adjusted, self.weight, self.counts.tolist()),
            "tau-norm": partial(tau_normalized, self.weight),
        }
        if method in adjust:
            strength = args.gamma if method == "multiplicative" else args.tau
            if self.validation is not None:
                strength = _best(adjust[method], STRENGTHS[method], self.validation, len(self.counts))
            return adjust[method](strength), strength
        if method == "as-trained":
            return logit_adjusted(self.weight, self.bias, [1] * len(self.weight), 0), None
        if method == "class-mean":
            if args.no_images:
                raise ValueError("it needs the training images")
            return nearest_class_mean(self.train.features, self.train.labels, len(self.counts)), None
        memory = memory_states(self.checkpoint).get("feature")
        if memory is None:
            raise ValueError("the checkpoint holds no memory of features (--mbj writes one)")
        rows, labels = (memory[key][:-1].cpu() for key in ("slot_rows", "slot_labels"))
        return retrained(rows, labels, self.weight, self.bias), None

    def errors(self, classifier: Classifier) -> dict[str, float]:
        """Of the evaluation set, in percent: of all images and of each class group."""
        assert self.evaluation is not None
        images, wrong = self.evaluation.wrong(classifier, len(self.counts))
        return group_errors(images, wrong, self.counts)

    def write(self, classifier: Classifier, path: Path) -> None:
        """A checkpoint with this classifier in the place of the trained one.

        Raises:
            ValueError: where the model has no bias and the classifier needs one, or the file cannot be written.
        """
        weight, bias = classifier
        biased = [layer for layer in self.layers if layer.bias is not None]
        if not biased and bias.abs().max() > 0:
            raise ValueError(f"the classifier of {self.args.model} has no bias, and this one needs it: write another")
        with torch.no_grad():
            sizes = [layer.weight[0].numel() for layer in self.layers]
            # Several layers are averaged by the model.
            for layer, part in zip(self.layers, weight.split(sizes, dim=1), strict=True):
                layer.weight.copy_(part.reshape(layer.weight.shape) * len(self.layers))
            for layer in biased:
                layer.bias.copy_(bias * len(self.layers) / len(biased))
        state = {name: value.cpu() for name, value in self.model.state_dict().items()}
        content = {"arch": self.args.model, "epoch": self.checkpoint.get("epoch"), "state_dict": state}
        try:
            with whole(path) as part:
                torch.save(content, part)
        except (OSError, RuntimeError) as error:  # torch's word for a folder that is not there
            raise ValueError(f"cannot write {path} ({str(error).splitlines()[0]}): give --output FILE") from error


def _best(adjust: Callable[[float], Classifier], strengths: np.ndarray, images: Images, num_classes: int) -> float:
    """The strength of the lowest mean error of the classes; the smallest of equal ones."""
    means = []
    for strength in strengths:
        seen, wrong = images.wrong(adjust(float(strength)), num_classes)
        means.append((wrong[seen > 0] / seen[seen > 0]).mean())
    return round(float(strengths[int(np.argmin(means))]), 3)


def _counts_of_results(folder: Path) -> np.ndarray:
    """(C,) training images per class, from results.json."""
    try:
        return np.array(json.loads((folder / "results.json").read_text())["class_counts"], dtype=np.int64)
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"--no-images takes the class counts from {folder / 'results.json'}: {error}") from error


def table(rows: Results) -> str:
    """Test error in percent, a line for each classifier.

    Args:
        rows: name to the errors of :func:`group_errors`, and tau or gamma.
    """
    lines = [
        f"{'error, %':<18}{'tau':>7}{'all':>8} |{'head':>7}{'medium':>8}{'tail':>7} |{'many':>7}{'medium':>8}{'few':>7}"
    ]
    for name, (errors, strength) in rows.items():
        cells = [f"{errors[key]:.2f}" if key in errors else "-" for key in COLUMNS]
        tau = "" if strength is None else f"{strength:g}"
        lines.append(
            f"{name:<18}{tau:>7}{cells[0]:>8} |{cells[1]:>7}{cells[2]:>8}{cells[3]:>7} |"
            f"{cells[4]:>7}{cells[5]:>8}{cells[6]:>7}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
