"""Diagnostics in timm: the probe images, the classifier's input for them, and the columns of summary.csv."""

from __future__ import annotations

import copy
import logging
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from mbj_plugin.diagnostics.monitor import Monitor
from mbj_plugin.diagnostics.probe import Probe, choose_probe, evaluating, probe_or_none, torch_random_state
from mbj_plugin.diagnostics.writer import DiagnosticsWriter
from mbj_plugin.timm.classifiers import classifier_layers, recorded_inputs
from mbj_plugin.timm.compat import loader_inside
from mbj_plugin.timm.counts import dataset_labels
from mbj_plugin.timm.criterion import MBJLoss

_logger = logging.getLogger("mbj_plugin")


def make_monitor(
    model: nn.Module, criterion: Any, class_counts: ArrayLike, train_loader: Any, evaluation_loader: Any
) -> Monitor:
    """The diagnostics of a run, on the first rank. Draws no random number that the run could miss.

    Args:
        model: the timm model on its device, before it is compiled or wrapped.
        criterion: the run's; of an MBJLoss the memories are watched.
        class_counts: (C,) training images per class.
        train_loader: its data set holds the probe images.
        evaluation_loader: how images are prepared for evaluation; None leaves the probe out.
    """
    heads: Any = [criterion.memories] if isinstance(criterion, MBJLoss) else []
    return Monitor(class_counts, heads, _make_probe(model, class_counts, train_loader, evaluation_loader))


class EpochDiagnostics:
    """Writes a run's diagnostics into its folder at the end of each epoch.

    Args:
        monitor: the run's.
        folder: the run's, which exists.
        first_epoch: epoch (from 0) that the run begins or goes on with; what is written of it and later is dropped.
        iterations: of one epoch.
    """

    def __init__(self, monitor: Monitor, folder: Path | str, first_epoch: int, iterations: int) -> None:
        self.monitor, self.iterations = monitor, iterations
        self.writer = DiagnosticsWriter(folder, first_epoch, first_epoch * iterations)

    def report(self, epoch: int, losses: dict[str, float]) -> dict[str, float]:
        """Write the scalars, and the epoch's mean losses by their names beside them.

        Returns:
            The scalars by the names that timm's summary.csv has them under, after ``train_``.
        """
        scalars = self.monitor.scalars()
        named = {f"mbj/{name}": value for name, value in losses.items()}
        self.writer.write((epoch + 1) * self.iterations, epoch, scalars | named)
        return scalars

    def close(self) -> None:
        """End the event file."""
        self.writer.close()


def fit_columns(train_metrics: dict[str, float], summary: Path | str) -> dict[str, float]:
    """The training metrics of a row of timm's summary.csv, which writes them in order under the header that is there.

    Where a run was resumed with or without MBJ or its diagnostics, exactly the columns of that header, NaN in those
    that this run does not have. Older timm writes a new header there, and the last one counts.
    """
    lines = Path(summary).read_text().splitlines() if Path(summary).exists() else []
    headers = [line.split(",") for line in lines if line.startswith("epoch,")]
    if not headers:
        return train_metrics
    names = [name.removeprefix("train_") for name in headers[-1] if name.startswith("train_")]
    return {name: train_metrics.get(name, math.nan) for name in names}


def _make_probe(model: nn.Module, class_counts: ArrayLike, train_loader: Any, evaluation_loader: Any) -> Probe | None:
    def make() -> Probe:
        if evaluation_loader is None:
            raise ValueError("there is no evaluation set, whose way of preparing images they take")
        indices, groups = choose_probe(dataset_labels(train_loader.dataset), class_counts)
        images = _load_images(train_loader, evaluation_loader, indices)
        layers = input_layers(model)
        return Probe(lambda: classifier_input(model, layers, images), groups)

    return probe_or_none(make, _logger)


def _load_images(train_loader: Any, evaluation_loader: Any, indices: np.ndarray) -> Tensor:
    """(P, ...) images of the training set, as the model sees them in evaluation, on the loader's device."""
    dataset, inner = train_loader.dataset, loader_inside(evaluation_loader)
    # In a worker where training has some: file handles that a reader opens here would be shared with them.
    workers = min(1, inner.num_workers)
    images = Subset(dataset, indices.tolist())
    loader = DataLoader(images, len(images), num_workers=workers, collate_fn=inner.collate_fn)
    if inner is not evaluation_loader:
        prefetch = copy.copy(evaluation_loader)
        prefetch.loader = loader
        loader = prefetch
    training, dataset.transform = dataset.transform, evaluation_loader.dataset.transform
    python, numpy = random.getstate(), np.random.get_state()  # a data set of the user's may draw from them
    try:
        with torch_random_state():
            return next(iter(loader))[0]
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        dataset.transform = training


def input_layers(model: Any) -> list[nn.Module]:
    """The layers that classify, whose input is what jitters: linear ones, or a loss's own.

    Raises:
        ValueError: where the model has no such classifier.
    """
    classifier: Any = model.get_classifier() if hasattr(model, "get_classifier") else None
    own = isinstance(classifier, nn.Module) and getattr(getattr(classifier, "weight", None), "ndim", 0) == 2
    return [classifier] if own else classifier_layers(model)


def classifier_input(model: nn.Module, layers: list[nn.Module], images: Tensor) -> Tensor:
    """(P, D) inputs of the classifier ``layers`` for P images, in evaluation mode. Nothing of the model changes."""
    parameter = next(model.parameters())
    with recorded_inputs(layers) as inputs, evaluating(model):
        # forward, not __call__: a compiled model stays out of it.
        model.forward(images.to(parameter.device, parameter.dtype))
    return torch.cat(inputs, dim=1)
