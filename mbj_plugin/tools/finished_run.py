"""A run folder of ``train_timm``, or of timm's own train.py with MBJ: settings, classifiers, the model run again."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mbj_plugin.timm.classifiers import classifier_layers, same_map
from mbj_plugin.timm.head import Heads
from mbj_plugin.tools.files import new_file
from mbj_plugin.tools.trainer import build
from mbj_plugin.tools.trainer.args import make_parser
from mbj_plugin.tools.trainer.checkpoint import read_checkpoint
from mbj_plugin.tools.trainer.data import check_same_classes, make_dataset
from mbj_plugin.tools.trainer.dataset_summary import class_names

CHECKPOINTS = ("last.pth.tar", "model_best.pth.tar")
#: (C, D) weight and (C,) bias.
Classifier = tuple[Tensor, Tensor]
#: tau of the logit adjustment that is in training already, by what brings it.
ADJUSTED = {"balanced_softmax": 1.0, "class-balanced": 1.0, "square-root": 0.5}


def saved_args(folder: Path, device: str = "cpu", data: str | None = None) -> Namespace:
    """The run's arguments, for one process, this device and nothing that would be downloaded. ``data`` is the folder of
    images that have moved."""
    path = folder / "args.yaml"
    if not path.is_file():
        raise ValueError(f"there is no {path}: give the folder of a run of mbj train")
    try:
        saved = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {str(error).splitlines()[0]}") from error
    if not isinstance(saved, dict):
        raise ValueError("args.yaml holds no arguments")
    fixed = {"device": device, "distributed": False, "world_size": 1, "rank": 0, "local_rank": 0, "prefetcher": False}
    fixed |= {"pretrained": False, "initial_checkpoint": "", "channels_last": False}
    fixed |= {"dataset_download": False, "pretrained_path": None} | ({"data_dir": data} if data else {})
    # The parser's defaults for what timm's train.py has no flag for: no config, so nothing of the digits'.
    return Namespace(**{**vars(make_parser().parse_args([])), **saved, **fixed})


def saved_results(folder: Path) -> dict[str, Any]:
    """The content of results.json."""
    path = folder / "results.json"
    if not path.is_file():
        raise ValueError(f"there is no {path}: give the folder of a finished run of mbj train")
    try:
        results = json.loads(path.read_text())
        results["class_counts"]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is cut short, or no results of mbj train ({error!r})") from error
    return results


def newest_checkpoint(folder: Path) -> tuple[str, dict[str, Any]]:
    """Name and content of the last checkpoint, or of the best one where there is no last."""
    for name in CHECKPOINTS:
        if (folder / name).is_file():
            return name, read_checkpoint(str(folder / name))
    raise ValueError(f"there is no {' and no '.join(CHECKPOINTS)} in the run's folder")


def memory_states(checkpoint: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """State of each memory in the checkpoint, by its kind; none for a run without MBJ."""
    states: dict[str, dict[str, Any]] = {}
    for key, value in ((checkpoint.get("task_state") or {}).get("mbj") or {}).items():
        kind, bank, entry = [*key.split(".", 2), "", ""][:3]
        if bank == "bank":
            states.setdefault(kind, {})[entry] = value
    return states


@contextmanager
def recorded_inputs(layers: list[nn.Module]) -> Iterator[list[Tensor]]:
    """The (B, D) input of each layer, in the order in which they are called."""
    inputs: list[Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _, x: inputs.append(x[0].flatten(1))) for layer in layers]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()


def _input_layers(model: Any) -> list[nn.Module]:
    """The layers that classify: linear ones, or one of a loss's own; none where the model has no such classifier."""
    classifier: Any = model.get_classifier()
    if isinstance(classifier, nn.Module) and getattr(getattr(classifier, "weight", None), "ndim", 0) == 2:
        return [classifier]
    try:
        return classifier_layers(model)
    except ValueError:
        return []


@dataclass
class Inputs:
    """Of the images of a set: (N, D) inputs of the classifier, (N,) labels, and a hash of each image as it was read."""

    features: Tensor
    labels: Tensor
    seen: list[int]

    def wrong(self, classifier: Classifier, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
        """(C,) images of each class, and (C,) of them that the classifier gets wrong."""
        answers = torch.cat([F.linear(rows, *classifier).argmax(1) for rows in self.features.split(4096)])
        missed = self.labels[answers != self.labels]
        counts = [torch.bincount(labels, minlength=num_classes).numpy() for labels in (self.labels, missed)]
        return counts[0], counts[1]

    def shares(self, others: Inputs) -> float:
        """Share of these images that are among the others, whatever their files and splits are called."""
        known = set(others.seen)
        return sum(image in known for image in self.seen) / max(len(self.seen), 1)


class FinishedRun:
    """The run: its model and classifiers, and once they are read, the inputs of its classifier.

    ``data`` is the folder of images that have moved, and ``test`` another split to evaluate on. Without ``images`` none
    is read, and the counts come from results.json. A folder that is no run, a run that diverged and images of other
    classes are ValueErrors.
    """

    def __init__(
        self, folder: Path, device: str = "cpu", data: str | None = None, images: bool = True, test: str = ""
    ) -> None:
        self.args = saved_args(folder, device, data)
        self.args.val_split = test or self.args.val_split
        self.name, self.checkpoint = newest_checkpoint(folder)
        epoch = self.checkpoint.get("epoch")
        #: "epoch 4 of 8" of a run that was stopped, or is not over.
        self.unfinished = ""
        if isinstance(epoch, int) and epoch + 1 < self.args.epochs:
            self.unfinished = f"epoch {epoch + 1} of {self.args.epochs}"
        self.device = torch.device(device)
        self.datasets = build.make_datasets(self.args) if images else None
        self.model = build.make_model(self.args, self.device)
        state = self.checkpoint.get("state_dict_ema") or self.checkpoint["state_dict"]
        if broken := [key for key, value in state.items() if not torch.isfinite(value).all()]:
            raise ValueError(
                f"{folder} diverged, {broken[0]} is not finite in {self.name}: train again, with a lower --lr"
            )
        try:
            self.model.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"{self.name} does not fit the model of args.yaml ({str(error)[:200]})") from error
        if self.datasets is None:
            self.counts = np.array(saved_results(folder)["class_counts"], dtype=np.int64)
            return
        self._check_classes()
        loaders = build.make_loaders(self.args, self.model, self.datasets, self.device)
        self.counts, self.evaluation_loader = loaders.counts, loaders.evaluation

    def _check_classes(self) -> None:
        """Raises ValueError for images of other classes than those of training."""
        saved, here = (self.checkpoint.get("data") or {}).get("class_names"), class_names(self.datasets[1])  # type: ignore[index]
        if saved and here and saved != here:
            then, now = next((a, b) for a, b in zip_longest(saved, here) if a != b)
            raise ValueError(f"the run was trained with other classes ({then!r}, here {now!r}): check --data")

    def classifiers(self) -> dict[str, Classifier]:
        """Those that were trained: "batch", which is that of a run without MBJ, and "mbj".

        Where MBJ shared its classifier with the batch loss there is no "batch".
        """
        layers = classifier_layers(self.model)
        own = _affine(layers)
        averaged = "_ema" if self.checkpoint.get("state_dict_ema") else ""
        batch = (self.checkpoint.get(f"task_state{averaged}") or {}).get("batch_classifier")
        if not batch:
            return {"mbj" if memory_states(self.checkpoint) else "batch": own}
        both = nn.ModuleList(layers)
        before = {key: value.clone() for key, value in both.state_dict().items()}
        both.load_state_dict(batch)
        found = {"batch": _affine(layers), "mbj": own}
        both.load_state_dict(before)
        return found

    def adjusted_already(self) -> float:
        """The tau of logit adjustment that the batch classifier's training had; NaN where that is not known."""
        loss, sampler = self.args.loss, getattr(self.args, "sampler", None)
        if ":" in str(loss) or "batch" not in self.classifiers():
            return float("nan")
        return ADJUSTED.get(loss, 0.0) + ADJUSTED.get(str(sampler), 0.0)

    def read_evaluation(self) -> Inputs:
        """The images that the run was evaluated on."""
        return self._read(self.evaluation_loader)

    def read_training(self) -> Inputs:
        """The training images, without augmentation."""
        return self._read_set(self.datasets[0])  # type: ignore[index]

    def read_validation(self, split: str, *others: Inputs) -> Inputs:
        """The images of a split to choose on, which must not be among the others, under whatever name."""
        dataset = make_dataset(self.args, split, False, build.image_mode(self.args))
        check_same_classes(self.datasets[0], dataset)  # type: ignore[index]
        images = self._read_set(dataset)
        for kind, known in zip(("evaluated", "trained"), others, strict=True):
            if (share := images.shares(known)) > 0.05:  # some sets hold a few images twice
                raise ValueError(
                    f"--choose-on {split}: the run was {kind} on {100 * share:.0f} % of its images, name another split"
                )
        return images

    def _read_set(self, dataset: Any) -> Inputs:
        """As evaluation shows its images."""
        dataset.transform = self.datasets[1].transform  # type: ignore[index]
        return self._read(DataLoader(dataset, self.args.batch_size, num_workers=self.args.workers))

    @torch.no_grad()
    def outputs(self, loader: Any) -> Iterator[tuple[Tensor, Tensor, Tensor, list[int]]]:
        """(B,) labels, (B, C) logits, (B, D) inputs of the classifier and B hashes of each batch, on the CPU.

        Unlabelled images are left out. Of a model without a plain classifier the inputs are (B, 0).
        """
        self.model.eval()
        with recorded_inputs(_input_layers(self.model)) as inputs:
            for images, labels in loader:
                inputs.clear()
                logits = self.model(images.to(self.device)).float().cpu()
                known = labels >= 0
                features = torch.cat(inputs, dim=1).float().cpu() if inputs else logits[:, :0]
                seen = [hash(image.numpy().tobytes()) for image in images[known].cpu()]
                yield labels[known], logits[known], features[known], seen

    def _read(self, loader: Any) -> Inputs:
        weight, bias = _affine(classifier_layers(self.model))
        labels, features, seen = [], [], []
        for batch_labels, logits, inputs, hashes in self.outputs(loader):
            if inputs.shape[1] != weight.shape[1] or not same_map(weight, bias, inputs, logits, tolerance=0.01):
                raise ValueError(
                    f"the logits of {self.args.model} are not what its classifier computes from its input (it combines "
                    "several heads, or scales them): another classifier cannot take its place"
                )
            labels.append(batch_labels)
            features.append(inputs)
            seen += hashes
        return Inputs(torch.cat(features), torch.cat(labels), seen)

    def put(self, classifier: Classifier) -> None:
        """Make it the model's own classifier; a ValueError where it needs a bias that the model has not."""
        weight, bias = classifier
        layers: list[Any] = classifier_layers(self.model)
        biased = [layer for layer in layers if layer.bias is not None]
        if not biased and bias.abs().max() > 0:
            raise ValueError(f"the classifier of {self.args.model} has no bias, and this one needs it: write another")
        with torch.no_grad():
            sizes = [layer.weight[0].numel() for layer in layers]
            # Several layers are averaged by the model.
            for layer, part in zip(layers, weight.split(sizes, dim=1), strict=True):
                layer.weight.copy_(part.reshape(layer.weight.shape) * len(layers))
            for layer in biased:
                layer.bias.copy_(bias * len(layers) / len(biased))

    def write(self, classifier: Classifier, path: Path) -> None:
        """A new checkpoint with this classifier in the place of the trained one."""
        self.put(classifier)
        state = {name: value.cpu() for name, value in self.model.state_dict().items()}
        content = {"arch": self.args.model, "epoch": self.checkpoint.get("epoch"), "state_dict": state}
        with new_file(path) as part:
            torch.save(content, part)


def _affine(layers: list[Any]) -> Classifier:
    weight, bias = Heads(layers).affine()
    weight = weight.detach().float().cpu().clone()
    return weight, weight.new_zeros(len(weight)) if bias is None else bias.detach().float().cpu().clone()
