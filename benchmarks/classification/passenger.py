"""Classifiers on detached features: they ride on the run of their batch loss, and each row is that of a run by itself.

The features never feel such a classifier. So it is trained after the run, from the features that the run has logged:
the same inputs, draws, learning rates and steps as in a run by itself, to the bit.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.classification.graph import graphed
from benchmarks.classification.recipe import build_model, build_optimizer
from benchmarks.classification.settings import Method
from benchmarks.classification.training import CellRun, class_errors
from benchmarks.rivals import create_loss
from mbj_plugin.logit_adjustment import logit_adjusted, nearest_class_mean, tau_normalized
from mbj_plugin.losses import FeatureMemoryLoss


class Features:
    """The logged features of a finished run, and what its classifier became.

    Args:
        run: of the batch loss alone, trained to its end, with its log.
    """

    def __init__(self, run: CellRun) -> None:
        assert run.log is not None and run.epoch == run.protocol.epochs
        self.run, self.log = run, run.log
        self.test = run.features(run.test_images)
        self.train = run.features(run.train_images)
        model: Any = run.model
        self.classifier: nn.Linear = model.get_classifier()


def passenger_row(method: Method, features: Features) -> dict[str, Any]:
    """The row of a passenger: as :meth:`CellRun.result`.

    Args:
        method: one that is a passenger, on the batch loss of the run.
        features: of the run.
    """
    began, run = time.monotonic(), features.run
    curve: list[dict[str, Any]] = []
    if method.after is not None:
        layer = _after(method, features)
    else:
        layer, curve = _train(method, features)
    per_class = class_errors(_predict(layer, features.test), run.test_labels)
    if method.after is not None:
        curve = [{**run.point(run.epoch, per_class, 0.0), "train_loss": run.curve[-1]["train_loss"]}]
    right = _predict(layer, features.train) == run.train_labels.cpu().numpy()
    return run.row(per_class, 100 * float(right.mean()), curve, time.monotonic() - began)


def _after(method: Method, features: Features) -> nn.Linear:
    """The linear classifier that takes the finished one's place."""
    weight, bias = features.classifier.weight.detach(), features.classifier.bias.detach()
    counts = features.run.counts.tolist()
    if method.after == "logit_adjustment":
        weight, bias = logit_adjusted(weight, bias, counts, method.tau)
    elif method.after == "tau_normalization":
        weight, bias = tau_normalized(weight, method.tau)
    else:
        assert method.after == "nearest_class_mean"
        weight, bias = nearest_class_mean(features.train, features.run.train_labels, len(counts))
    layer = nn.Linear(weight.shape[1], weight.shape[0]).to(weight.device)
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def _train(method: Method, features: Features) -> tuple[nn.Linear, list[dict[str, Any]]]:
    """The classifier after all steps of the run, and its curve."""
    run, log, protocol = features.run, features.log, features.run.protocol
    model: Any = build_model(protocol, Method(), run.num_classes, run.seed)
    layer: nn.Linear = model.get_classifier().to(run.device)
    start = method.start_epoch(protocol) * run.steps
    batch_loss = create_loss(method.classifier_loss or method.loss, run.counts.tolist(), start=start).to(run.device)
    memory = None
    if method.memory is not None:
        settings = method.memory_settings(protocol, run.steps)
        memory = FeatureMemoryLoss(run.counts.tolist(), layer.in_features, seed=run.seed, **settings).to(run.device)
    optimizer, scheduler = build_optimizer(protocol, layer, run.steps)

    def forward_backward(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        target = run.batches.targets(y, weight)
        loss = batch_loss(layer(x), target)
        if memory is not None:
            loss = loss + memory(x, target, layer.weight, layer.bias)
        loss.backward()
        return loss.detach()

    call = None
    curve: list[dict[str, Any]] = []
    for epoch in range(protocol.epochs):
        inputs = torch.from_numpy(np.array(log.features[epoch])).to(run.device)
        labels = torch.from_numpy(np.array(log.labels[epoch])).to(run.device)
        total = torch.zeros((), device=run.device)
        for step, batch in enumerate(zip(inputs, labels, run.batches.mixing_weights(epoch), strict=True)):
            scheduler.step_update(epoch * run.steps + step)
            if not run.graph:
                optimizer.zero_grad(set_to_none=True)
            elif call is None:
                stateful = [batch_loss, *([memory] if memory is not None else [])]
                call = graphed(forward_backward, batch, list(layer.parameters()), stateful)
            total += (call or forward_backward)(*batch)
            optimizer.step()
        if epoch + 1 in protocol.curve_points:
            curve.append(run.point(epoch + 1, _curve_errors(layer, features, epoch + 1), float(total) / run.steps))
    return layer, curve


def _curve_errors(layer: nn.Linear, features: Features, epoch: int) -> np.ndarray:
    run = features.run
    if epoch == run.protocol.epochs:
        return class_errors(_predict(layer, features.test), run.test_labels)
    logged = np.array(features.log.test_features[run.protocol.curve_points.index(epoch)])
    predicted = _predict(layer, torch.from_numpy(logged).to(run.device))
    return class_errors(predicted, run.test_labels[:: run.protocol.curve_stride])


@torch.no_grad()
def _predict(layer: nn.Linear, features: Tensor) -> np.ndarray:
    return layer(features).argmax(1).cpu().numpy()


def log_folder(state_file: Path) -> Path:
    """Where a run keeps its features, beside where it goes on from."""
    return state_file.with_suffix(".features")
