"""Diagnostics in fast-reid: a hook that puts them into the EventStorage, and so into every writer that the run has."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from fastreid.data.transforms import build_transforms
from fastreid.engine.hooks import PeriodicWriter
from fastreid.engine.train_loop import HookBase, TrainerBase
from fastreid.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mbj_plugin.diagnostics.monitor import Monitor
from mbj_plugin.diagnostics.probe import Probe, choose_probe, evaluating, probe_or_none, torch_random_state
from mbj_plugin.diagnostics.writer import DiagnosticsWriter
from mbj_plugin.fastreid.counts import class_counts, labels_of
from mbj_plugin.fastreid.head import MBJHead

logger = logging.getLogger("fastreid.mbj_plugin")


class DiagnosticsHook(HookBase):
    """At the end of each epoch, on the main process: scalars to the EventStorage and to OUTPUT_DIR/diagnostics.jsonl.

    The losses are fast-reid's own scalars.

    Args:
        monitor: what is reported.
        folder: OUTPUT_DIR; None writes no file.
        iters_per_epoch: iterations of one epoch.
    """

    def __init__(self, monitor: Monitor, folder: str | None, iters_per_epoch: int) -> None:
        self.monitor, self.folder, self.iters_per_epoch = monitor, folder, iters_per_epoch
        self.writer: DiagnosticsWriter | None = None

    def before_train(self) -> None:
        if self.folder:
            first = self.trainer.start_iter
            # fast-reid's own writer makes the events.
            self.writer = DiagnosticsWriter(self.folder, first // self.iters_per_epoch, first, tensorboard=False)

    def after_step(self) -> None:
        # Not after_epoch: where a writer has written in the last step, it would skip what comes after it.
        done = self.trainer.iter + 1
        if done % self.iters_per_epoch:
            return
        scalars = self.monitor.scalars()
        for name, value in scalars.items():
            if math.isfinite(value):
                self.trainer.storage.put_scalar(name, value, smoothing_hint=False)
        if self.writer is not None:
            self.writer.write(done, self.trainer.epoch, scalars)


def train_watched(train: Callable, self: TrainerBase, start_epoch: int, max_epoch: int, iters_per_epoch: int) -> Any:
    """TrainerBase.train, with the hook where the model has an MBJHead and MODEL.MBJ.DIAGNOSTICS is on."""
    if comm.is_main_process():
        add_hook(self, iters_per_epoch)
    return train(self, start_epoch, max_epoch, iters_per_epoch)


def add_hook(trainer: TrainerBase, iters_per_epoch: int) -> None:
    """Add the hook to a trainer, before the writers, which write what is there; a second call changes nothing."""
    inner = getattr(trainer, "_trainer", trainer)  # DefaultTrainer holds a SimpleTrainer
    model: Any = getattr(inner, "model", None)
    hooks = trainer._hooks
    heads = [module for module in model.modules() if isinstance(module, MBJHead)] if model is not None else []
    if not heads or not heads[0].settings.diagnostics or any(isinstance(hook, DiagnosticsHook) for hook in hooks):
        return
    model = model.module if isinstance(model, DistributedDataParallel) else model
    cfg = getattr(trainer, "cfg", None)
    monitor = _make_monitor(model, heads, getattr(getattr(inner, "data_loader", None), "dataset", None), cfg)
    folder = getattr(cfg, "OUTPUT_DIR", None)
    trainer.register_hooks([DiagnosticsHook(monitor, folder, iters_per_epoch)])
    first_writer = [isinstance(hook, PeriodicWriter) for hook in hooks[:-1]] + [True]
    hooks.insert(first_writer.index(True), hooks.pop())


def _make_monitor(model: nn.Module, heads: list[MBJHead], dataset: Any, cfg: Any) -> Monitor:
    probe = _make_probe(model, len(heads[0].weight), dataset, cfg)
    # None where ETA is 0, or where nobody has told the heads the class counts, which they complain of themselves.
    memories: list[Any] = [head.memories for head in heads if any(m.probs is not None for m in head.memories.values())]
    counts = next(iter(memories[0].values())).class_counts.cpu() if memories else [1]
    return Monitor(counts, memories, probe)


def _make_probe(model: nn.Module, num_classes: int, dataset: Any, cfg: Any) -> Probe | None:
    def make() -> Probe:
        if cfg is None:
            raise ValueError("the trainer has no `cfg`, which says how images are prepared")
        indices, groups = choose_probe(labels_of(dataset), class_counts(dataset, num_classes))
        images = _load_images(dataset, indices.tolist(), build_transforms(cfg, is_train=False))
        return Probe(_features(model, images), groups)

    return probe_or_none(make, logger)


def _load_images(dataset: Any, indices: list[int], transform: Any) -> Tensor:
    """(P, 3, H, W) images of the training set, prepared as for a test."""
    prepared = copy.copy(dataset)  # fast-reid's loader may be reading from the data set in a thread
    prepared.transform = transform
    # On CUDA that thread draws from NumPy's and Python's generators; preparing for a test draws from neither.
    with torch_random_state():
        return torch.stack([prepared[index]["images"] for index in indices])


def _features(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    """Gives the (P, D) features that ``model`` would search with."""

    def features() -> Tensor:
        with evaluating(model):
            # A copy: fast-reid normalises its input in place.
            return model({"images": images.to(next(model.parameters()).device, copy=True)})

    return features
