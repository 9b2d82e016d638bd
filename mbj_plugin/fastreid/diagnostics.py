"""Diagnostics in fast-reid: a hook that puts them into the EventStorage, and so into every writer that the run has."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from fastreid.engine.hooks import PeriodicWriter
from fastreid.engine.train_loop import HookBase, TrainerBase
from fastreid.utils import comm

from mbj_plugin.diagnostics import memories_report
from mbj_plugin.fastreid.collect import mbj_heads


class DiagnosticsHook(HookBase):
    """At the end of each epoch, on the main process: what the memories hold, to the EventStorage.

    Args:
        heads: those of the model that hold a memory.
        iters_per_epoch: iterations of one epoch.
    """

    def __init__(self, heads: list[Any], iters_per_epoch: int) -> None:
        self.memories = [head.memories for head in heads]
        self.iters_per_epoch = iters_per_epoch

    def after_step(self) -> None:
        # Not after_epoch: where a writer has written in the last step, it would skip what comes after it.
        if (self.trainer.iter + 1) % self.iters_per_epoch:
            return
        counts = next(iter(self.memories[0].values())).class_counts
        for name, value in memories_report(self.memories, counts.cpu()).items():
            if math.isfinite(value):
                self.trainer.storage.put_scalar(name, value, smoothing_hint=False)


def train_watched(train: Callable, self: TrainerBase, start_epoch: int, max_epoch: int, iters_per_epoch: int) -> Any:
    """TrainerBase.train, with the hook where a head of the model holds a memory."""
    if comm.is_main_process():
        add_hook(self, iters_per_epoch)
    return train(self, start_epoch, max_epoch, iters_per_epoch)


def add_hook(trainer: TrainerBase, iters_per_epoch: int) -> None:
    """Add the hook to a trainer, before the writers, which write what is there; a second call changes nothing."""
    model: Any = getattr(getattr(trainer, "_trainer", trainer), "model", None)  # DefaultTrainer holds a SimpleTrainer
    hooks = trainer._hooks
    heads = mbj_heads(model) if model is not None else []
    if not heads or any(isinstance(hook, DiagnosticsHook) for hook in hooks):
        return
    trainer.register_hooks([DiagnosticsHook(heads, iters_per_epoch)])
    first_writer = [isinstance(hook, PeriodicWriter) for hook in hooks[:-1]] + [True]
    hooks.insert(first_writer.index(True), hooks.pop())
