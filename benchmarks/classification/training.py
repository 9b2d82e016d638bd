"""One cell, trained and tested: images and draws on the device, one step at a time, on a GPU as a CUDA graph."""

from __future__ import annotations

import functools
import math
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor

import mbj_plugin
from benchmarks.classification.batches import Batches
from benchmarks.classification.data import Images
from benchmarks.classification.feature_log import FeatureLog
from benchmarks.classification.graph import graphed
from benchmarks.classification.recipe import build_criterion, build_model, build_optimizer, normalize
from benchmarks.classification.settings import SYSTEMS, Method, Protocol
from benchmarks.rivals.bbn import BilateralLoss
from mbj_plugin.longtail import class_groups, count_classes

SAVE_EVERY_S = 300.0
TEST_BATCH = 1000


class CellRun:
    """Trains one method on one long-tailed set. After :meth:`train` has returned True, :meth:`result` is the row.

    Args:
        protocol: how.
        method: with what.
        images: the long-tailed training set and the test set.
        seed: of the weights, of the batches and of the memory's draws.
        device: "cpu" or "cuda".
        graph: capture the step in a CUDA graph; False launches each kernel by itself.
        precision: "fp32", or "amp" for bf16 in all that comes before the classifier.
        log_folder: where the features of all steps are kept, for passengers.
    """

    def __init__(
        self,
        protocol: Protocol,
        method: Method,
        images: Images,
        seed: int,
        device: str = "cpu",
        graph: bool = True,
        precision: str = "fp32",
        log_folder: Path | None = None,
    ) -> None:
        self.protocol, self.method, self.seed, self.device = protocol, method, seed, torch.device(device)
        counts = count_classes(images.train_labels)
        self.num_classes, self.groups = len(counts), class_groups(counts)
        self.counts = counts
        images = images.shrunk(protocol.shrink)
        self.train_images = torch.from_numpy(images.train).to(self.device)
        self.train_labels = torch.from_numpy(images.train_labels).to(self.device)
        self.test_images = torch.from_numpy(images.test).to(self.device)
        self.test_labels = images.test_labels
        self.model = build_model(protocol, method, self.num_classes, seed).to(self.device)
        self.batches = Batches(protocol, method, images, self.num_classes, seed, self.device)
        self.statistics, self.steps = self.batches.statistics, self.batches.steps
        self.criterion = build_criterion(protocol, method, counts.tolist(), self.model, self.steps, seed)
        self.optimizer, self.scheduler = build_optimizer(protocol, self.model, self.steps)
        self.epoch, self.seconds, self.resumed = 0, 0.0, 0
        self.curve: list[dict[str, Any]] = []
        self.graph = graph and self.device.type == "cuda"
        self.autocast = functools.partial(
            torch.autocast, self.device.type, dtype=torch.bfloat16, enabled=precision == "amp"
        )
        self.log: FeatureLog | None = None
        if log_folder is not None:
            points = len(protocol.curve_points)
            tested = len(self.test_labels[:: protocol.curve_stride])
            self.log = FeatureLog(
                log_folder, self.model, protocol.epochs, self.steps, protocol.batch_size, points, tested
            )
        self._final: np.ndarray | None = None
        self._call: Callable[..., Tensor] | None = None

    def train(self, state_file: Path | None = None, deadline: float = math.inf) -> bool:
        """Train to the end, or until the deadline.

        Args:
            state_file: where to go on from, and where to save now and then and at the deadline.
            deadline: by ``time.monotonic``; checked after each epoch, with one epoch to spare.

        Returns:
            Whether the training is finished.
        """
        if state_file is not None and state_file.exists():
            self.load(state_file)
        saved = time.monotonic()
        while self.epoch < self.protocol.epochs:
            began = time.monotonic()
            self._train_epoch()
            now = time.monotonic()
            self.seconds += now - began
            late = now + (now - began) > deadline and self.epoch < self.protocol.epochs
            if state_file is not None and (late or now - saved > SAVE_EVERY_S):
                self.save(state_file)
                saved = now
            if late:
                return False
        return True

    def _train_epoch(self) -> None:
        self.model.train()
        if isinstance(self.criterion, BilateralLoss):
            self.criterion.begin_epoch(self.epoch, self.protocol.epochs)
        total = torch.zeros((), device=self.device)
        for step, draw in enumerate(self.batches.epoch(self.epoch)):
            self.scheduler.step_update(self.epoch * self.steps + step)
            total += self._step(draw)
        if self.log is not None:
            self.log.write_epoch(self.epoch)
        self.epoch += 1
        if self.epoch in self.protocol.curve_points:
            last = self.epoch == self.protocol.epochs
            per_class = self.test_error(1 if last else self.protocol.curve_stride)
            if self.log is not None:
                self._log_test_features()
            self._final = per_class if last else None
            self.curve.append(self.point(self.epoch, per_class, float(total) / self.steps))

    def point(self, epoch: int, per_class: np.ndarray, train_loss: float) -> dict[str, Any]:
        """A point of a curve."""
        # JSON has no NaN.
        loss = round(train_loss, 4) if math.isfinite(train_loss) else None
        return {"epoch": epoch, **self.errors(per_class), "train_loss": loss}

    def _step(self, draw: Tensor) -> Tensor:
        """One step of SGD on the (B, 4) draw; the loss, detached."""
        if self.graph:
            if self._call is None:
                stateful = [self.model, self.criterion, *([self.log] if self.log is not None else [])]
                self._call = graphed(self._forward_backward, (draw,), list(self.model.parameters()), stateful)
            loss = self._call(draw)
        else:
            self.optimizer.zero_grad(set_to_none=True)
            loss = self._forward_backward(draw)
        self.optimizer.step()
        return loss

    def _forward_backward(self, draw: Tensor) -> Tensor:
        images, labels = self.batches.batch(draw)
        loss = self.criterion(self._logits(images), self.batches.targets(labels, self.batches.weight))
        if self.log is not None:
            self.log.write_step(labels)
        loss.backward()
        return loss.detach()

    def _logits(self, images: Tensor) -> Tensor:
        """(B, C) fp32 logits of (B, 3, H, W) images: autocast ends before the classifier, so that bf16 makes no ties
        between classes and every loss starts from the same precision."""
        if self.method.loss in SYSTEMS:  # whose own forward pass does the same
            with self.autocast():
                return self.model(images)
        return self.model.get_classifier()(self._pooled(images).float())  # type: ignore[operator]

    def _pooled(self, images: Tensor) -> Tensor:
        model: Any = self.model
        with self.autocast():
            return model.forward_head(model.forward_features(images), pre_logits=True)

    @torch.no_grad()
    def _predict(self, images: Tensor) -> np.ndarray:
        self.model.eval()
        parts = [self._logits(normalize(part, self.statistics)).argmax(1) for part in images.split(TEST_BATCH)]
        return torch.cat(parts).cpu().numpy()

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """(N, D) fp32 inputs of the classifier for (N, H, W, 3) images."""
        self.model.eval()
        return torch.cat([self._pooled(normalize(part, self.statistics)).float() for part in images.split(TEST_BATCH)])

    def _log_test_features(self) -> None:
        assert self.log is not None
        point = self.protocol.curve_points.index(self.epoch)
        images = self.test_images[:: self.protocol.curve_stride]
        self.log.test_features[point] = self.features(images).cpu().numpy()

    def test_error(self, stride: int = 1) -> np.ndarray:
        """(C,) error of each class, in percent, on every ``stride``-th test image."""
        return class_errors(self._predict(self.test_images[::stride]), self.test_labels[::stride])

    def errors(self, per_class: np.ndarray) -> dict[str, float | None]:
        """ "error", and the mean over the classes of each group (None where it has none)."""
        # Means over classes: the test sets are balanced, so these are means over images as well.
        groups = {name: round(float(per_class[c].mean()), 3) if len(c) else None for name, c in self.groups.items()}
        return {"error": round(float(per_class.mean()), 3), **groups}

    def result(self) -> dict[str, Any]:
        """What the row says of the run: errors in percent, curve, versions, device, seconds."""
        per_class = self._final if self._final is not None else self.test_error()
        right = self._predict(self.train_images) == self.train_labels.cpu().numpy()
        return self.row(per_class, 100 * float(right.mean()), self.curve, self.seconds)

    def row(
        self, per_class: np.ndarray, train_accuracy: float, curve: list[dict[str, Any]], seconds: float
    ) -> dict[str, Any]:
        """A row of this run, or of a classifier that was trained on its features."""
        cuda = self.device.type == "cuda"
        return {
            **self.errors(per_class),
            "per_class_error": [round(float(e), 2) for e in per_class],
            "train_accuracy": round(train_accuracy, 3),
            "class_counts": self.counts.tolist(),
            "curve": curve,
            "diverged": any(point["train_loss"] is None for point in curve),
            "seconds": round(seconds, 1),
            "resumed": self.resumed,
            "device": torch.cuda.get_device_name(self.device) if cuda else f"cpu, {torch.get_num_threads()} thread(s)",
            "versions": {
                "mbj_plugin": mbj_plugin.__version__,
                "torch": torch.__version__,
                "timm": timm.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        }

    def save(self, path: Path) -> None:
        """Write everything the rest of the run needs; a kill while writing leaves the old file."""
        part = path.with_suffix(f"{path.suffix}.part")
        torch.save(
            {
                "model": self.model.state_dict(),
                "criterion": self.criterion.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "progress": {
                    "epoch": self.epoch,
                    "seconds": self.seconds,
                    "resumed": self.resumed,
                    "curve": self.curve,
                },
            },
            part,
        )
        os.replace(part, path)

    def load(self, path: Path) -> None:
        """Go on from a state of this run."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.criterion.load_state_dict(state["criterion"])
        self.optimizer.load_state_dict(state["optimizer"])
        progress = state["progress"]
        self.epoch, self.seconds, self.curve = progress["epoch"], progress["seconds"], progress["curve"]
        self.resumed = progress["resumed"] + (self.epoch < self.protocol.epochs)


def class_errors(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(C,) error of each class, in percent, of (N,) predictions."""
    wrong = np.bincount(labels[predicted != labels], minlength=labels.max() + 1)
    return 100 * wrong / np.bincount(labels)
