"""What the classifier of a run has seen: inputs and labels of every step, the test images' at every curve point.

A classifier on detached features leaves no trace in the run that makes them. So one run of a batch loss keeps its
features in files, and every such classifier is trained from there afterwards (:mod:`.passenger`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor, nn


class FeatureLog:
    """Features of a run as files that are written epoch by epoch; an epoch that is run again overwrites its own.

    Args:
        folder: of the files; made where it is missing.
        model: the model of the run, on its device; its classifier is watched from now on. None to read only.
        epochs: E.
        steps: S, steps per epoch.
        batch_size: B.
        points: P, points of the curve.
        test_images: N, test images of a point.
    """

    def __init__(
        self, folder: Path, model: Any, epochs: int, steps: int, batch_size: int, points: int, test_images: int
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        classifier = model.get_classifier()
        dim, device = classifier.in_features, classifier.weight.device
        classifier.register_forward_pre_hook(self._see)
        self.features = _array(folder / "features.npy", np.float32, (epochs, steps, batch_size, dim))
        self.labels = _array(folder / "labels.npy", np.int64, (epochs, steps, batch_size))
        self.test_features = _array(folder / "test_features.npy", np.float32, (points, test_images, dim))
        # Filled step by step on the device, also inside a CUDA graph, and written out once an epoch.
        self.epoch_features = torch.zeros(steps, batch_size, dim, device=device)
        self.epoch_labels = torch.zeros(steps, batch_size, dtype=torch.long, device=device)
        self.step = torch.zeros((), dtype=torch.long, device=device)
        self.seen: Tensor | None = None

    def _see(self, classifier: nn.Module, inputs: tuple[Tensor]) -> None:
        self.seen = inputs[0].detach()

    def write_step(self, labels: Tensor) -> None:
        """Keep the last forward pass, with its (B,) labels."""
        assert self.seen is not None
        slot = (self.step % len(self.epoch_labels))[None]
        self.epoch_features.index_copy_(0, slot, self.seen.float()[None])
        self.epoch_labels.index_copy_(0, slot, labels[None])
        self.step.add_(1)

    def write_epoch(self, epoch: int) -> None:
        """The steps of an epoch, counted from 0, are complete."""
        self.features[epoch] = self.epoch_features.cpu().numpy()
        self.labels[epoch] = self.epoch_labels.cpu().numpy()
        self.step.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Its step, which the warm-up of a CUDA graph must leave as it was."""
        return {"step": self.step.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step.copy_(state["step"])


def _array(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    if path.exists():
        return open_memmap(path, mode="r+")
    return open_memmap(path, mode="w+", dtype=dtype, shape=shape)
