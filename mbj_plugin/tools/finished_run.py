"""A run folder of ``train_timm``, or of timm's own train.py: its arguments, its checkpoint, its model run again."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mbj_plugin.diagnostics.groups import group_errors
from mbj_plugin.files import new_file
from mbj_plugin.timm.head import Heads, classifier_layers, recorded_inputs, same_map
from mbj_plugin.tools.trainer import build
from mbj_plugin.tools.trainer.args import make_parser
from mbj_plugin.tools.trainer.checkpoint import read_checkpoint
from mbj_plugin.tools.trainer.data import check_same_classes, make_dataset

CHECKPOINTS = ("last.pth.tar", "model_best.pth.tar")
Classifier = tuple[Tensor, Tensor]


def saved_args(folder: Path, device: str, data: str | None) -> Namespace:
    """The run's arguments, for one process, this device and nothing that would be downloaded.

    Args:
        folder: of the run.
        device: where the model runs.
        data: folder of the images, where they are no longer where the run found them.

    Raises:
        ValueError: where the folder does not hold them.
    """
    path = folder / "args.yaml"
    if not path.is_file():
        raise ValueError("there is no args.yaml, which says what the model and the data are")
    saved = yaml.safe_load(path.read_text())
    if not isinstance(saved, dict):
        raise ValueError("args.yaml holds no arguments")
    fixed = {"device": device, "distributed": False, "world_size": 1, "rank": 0, "local_rank": 0, "prefetcher": False}
    fixed |= {"pretrained": False, "initial_checkpoint": "", "torchscript": False, "channels_last": False}
    fixed |= {"dataset_download": False, "pretrained_path": None}
    fixed |= {"data_dir": data} if data else {}
    # The parser's defaults for what timm's train.py has no flag for: no config, so nothing of the digits'.
    return Namespace(**{**vars(make_parser().parse_args([])), **saved, **fixed})


def saved_results(folder: Path) -> dict[str, Any]:
    """The content of results.json.

    Raises:
        ValueError: where it is not there, or is not what a run writes.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise ValueError(f"there is no {path}: give the folder of a finished run of train_timm")
    try:
        results = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is cut short or no JSON ({error})") from error
    if "class_counts" not in results:
        raise ValueError(f"{path} holds no results of train_timm")
    return results


def newest_checkpoint(folder: Path) -> tuple[str, dict[str, Any], list[str]]:
    """Name and content of the last checkpoint, or of the best one where the last is broken, and the broken ones' names.

    Raises:
        ValueError: where there is none.
    """
    found = [folder / name for name in CHECKPOINTS if (folder / name).is_file()]
    if not found:
        raise ValueError(f"there is no {' and no '.join(CHECKPOINTS)} in the run's folder")
    broken: list[str] = []
    for path in found:
        try:
            return path.name, read_checkpoint(str(path)), broken
        except ValueError:
            broken.append(path.name)
    return "", {}, broken


def evaluated_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """State dict of the model that was evaluated: the averaged one, where there is one."""
    return checkpoint.get("state_dict_ema") or checkpoint["state_dict"]


def memory_states(checkpoint: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """State of each memory in the checkpoint, by its kind; none for a run without MBJ."""
    states: dict[str, dict[str, Any]] = {}
    for key, value in ((checkpoint.get("task_state") or {}).get("mbj") or {}).items():
        kind, bank, entry = [*key.split(".", 2), "", ""][:3]
        if bank == "bank":
            states.setdefault(kind, {})[entry] = value
    return states


@torch.no_grad()
def run_images(
    model: nn.Module, layers: list[nn.Module], loader: Any, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(B,) true classes, (B, C) logits and (B, D) inputs of the classifier's ``layers`` of each batch, on the CPU.

    Unlabelled images are left out. Without layers the inputs are (B, 0).
    """
    model.eval()
    with recorded_inputs(layers) as inputs:
        for images, labels in loader:
            inputs.clear()
            logits = model(images.to(device)).float().cpu()
            known = labels >= 0
            features = torch.cat(inputs, dim=1).float().cpu() if inputs else logits[:, :0]
            yield labels[known], logits[known], features[known]


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
            try:
                self.counts = np.array(saved_results(folder)["class_counts"], dtype=np.int64)
            except ValueError as error:
                raise ValueError(f"--no-images takes the class counts from results.json: {error}") from error

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
            fits = inputs.shape[1] == self.weight.shape[1]
            if not fits or not same_map(self.weight, self.bias, inputs, logits, tolerance=0.01):
                raise ValueError(
                    f"the logits of {self.args.model} are not what its classifier computes from its input (it combines "
                    "several heads, or scales them): another classifier cannot take its place"
                )
            labels.append(batch_labels)
            features.append(inputs)
        return Images(torch.cat(features), torch.cat(labels))

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
        with new_file(path) as part:
            torch.save(content, part)
