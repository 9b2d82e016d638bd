"""Diagnostics in fast-reid: a hook that puts them into the EventStorage, and so into every writer that the run has."""

from __future__ import annotations

import functools
import logging
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
from mbj_plugin.diagnostics.probe import Probe, choose_probe, evaluating, preserved_random_state
from mbj_plugin.diagnostics.step_meter import StepMeter
from mbj_plugin.diagnostics.writer import DiagnosticsWriter
from mbj_plugin.fastreid.counts import class_counts, labels_of
from mbj_plugin.fastreid.head import MBJHead

logger = logging.getLogger("fastreid.mbj_plugin")


class DiagnosticsHook(HookBase):
    """At the end of each epoch, on the main process: scalars to the EventStorage and to OUTPUT_DIR/diagnostics.jsonl.

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
        scalars = self.monitor.scalars(done)
        for name, value in scalars.items():
            if value == value:  # not NaN
                self.trainer.storage.put_scalar(name, value, smoothing_hint=False)
        if self.writer is not None:
            self.writer.write(done, self.trainer.epoch, scalars)


def watch_training() -> None:
    """Let training begin with the hook, where the model has an MBJHead and MODEL.MBJ.DIAGNOSTICS is on. Runs once."""
    train = TrainerBase.train
    if getattr(train, "watches_mbj", False):
        return

    @functools.wraps(train)
    def train_watched(self, start_epoch, max_epoch, iters_per_epoch):
        if comm.is_main_process():
            add_hook(self, iters_per_epoch)
        return train(self, start_epoch, max_epoch, iters_per_epoch)

    train_watched.watches_mbj = True
    TrainerBase.train = train_watched


def add_hook(trainer: TrainerBase, iters_per_epoch: int) -> None:
    """Add the hook to a trainer, before the writers, which write what is there; a second call changes nothing."""
    inner = getattr(trainer, "_trainer", trainer)  # DefaultTrainer holds a SimpleTrainer
    model, hooks = getattr(inner, "model", None), trainer._hooks
    heads = [module for module in model.modules() if isinstance(module, MBJHead)] if model is not None else []
    if not heads or not heads[0].settings.diagnostics or any(isinstance(hook, DiagnosticsHook) for hook in hooks):
        return
    model = model.module if isinstance(model, DistributedDataParallel) else model
    cfg = getattr(trainer, "cfg", None)
    monitor = _make_monitor(model, heads, inner.data_loader, cfg)
    trainer.register_hooks([DiagnosticsHook(monitor, getattr(cfg, "OUTPUT_DIR", None), iters_per_epoch)])
    first_writer = [isinstance(hook, PeriodicWriter) for hook in hooks[:-1]] + [True]
    hooks.insert(first_writer.index(True), hooks.pop())


def _make_monitor(model: nn.Module, heads: list[MBJHead], loader: Any, cfg: Any) -> Monitor:
    counts = class_counts(loader.dataset, len(heads[0].weight))
    probe = _make_probe(model, counts, loader.dataset, cfg)
    watched = [head for head in heads if head.memories]
    if not watched:  # ETA 0
        return Monitor(counts, probe=probe)
    meter = StepMeter(len(counts))
    watched[0].meter = meter
    return Monitor(counts, [head.memories for head in watched], meter, probe)  # type: ignore[misc]


def _make_probe(model: nn.Module, counts: Tensor, dataset: Any, cfg: Any) -> Probe | None:
    try:
        if cfg is None:
            raise ValueError("the trainer has no `cfg`, which says how images are prepared")
        indices, groups = choose_probe(labels_of(dataset), counts)
        images = _load_images(dataset, indices.tolist(), build_transforms(cfg, is_train=False))
        probe = Probe(_features(model, images), groups)
        probe.features()  # so that a model that cannot do it says so now
    except Exception as error:  # whatever a data set or a model of the user's raises: it must not end the run
        reason = str(error).split("\n")[0][:200] or type(error).__name__
        logger.info("Diagnostics go without probe images: %s", reason)
        return None
    return probe


def _load_images(dataset: Any, indices: list[int], transform: Any) -> Tensor:
    """(P, 3, H, W) images of the training set, prepared as for a test."""
    training, dataset.transform = dataset.transform, transform
    try:
        with preserved_random_state():
            return torch.stack([dataset[index]["images"] for index in indices])
    finally:
        dataset.transform = training


def _features(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    """Gives the (P, D) features that ``model`` would search with."""

    def features() -> Tensor:
        with evaluating(model):
            # A copy: fast-reid normalises its input in place.
            return model({"images": images.to(next(model.parameters()).device, copy=True)})

    return features
