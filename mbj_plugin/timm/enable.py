"""Importing this makes timm's own ``train.py`` train MBJ: ``python train.py --device-modules mbj_plugin.timm.enable``.

Settings come from the variable ``MBJ``, as ``MBJ="eta=15,norm=max,start=auto"``. timm imports the module before it
builds anything; from then on ``ClassificationTask(...)`` gives an :class:`MBJTask` over the criterion it is given.
"""

from __future__ import annotations

import logging
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch
from timm import utils
from timm.task import ClassificationTask, TrainingTask
from torch import nn

from mbj_plugin.diagnostics.monitor import Monitor
from mbj_plugin.losses import rank_and_world
from mbj_plugin.timm import clip
from mbj_plugin.timm.counts import training_counts
from mbj_plugin.timm.diagnostics import EpochDiagnostics, fit_columns, make_monitor
from mbj_plugin.timm.schedule import start_epoch
from mbj_plugin.timm.settings import MBJSettings
from mbj_plugin.timm.task import MBJTask

_logger = logging.getLogger(__name__)


class EnabledTask(MBJTask):
    """What ``ClassificationTask(...)`` gives inside timm's ``train.py``: signature and criterion are train.py's own."""

    def __init__(
        self,
        model: nn.Module,
        criterion: Any = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
        **criterion_kwargs: Any,
    ) -> None:
        args, loader, evaluation_loader = _training_run()
        settings = MBJSettings.from_text(os.environ.get("MBJ", ""))
        if getattr(args, "resume", ""):
            settings = settings.resumed(torch.load(args.resume, map_location="cpu", weights_only=False))
        if criterion is None and criterion_kwargs:
            from timm.loss import create_classification_loss

            criterion = create_classification_loss(**(criterion_kwargs.get("criterion_kwargs") or {}))
        counts = training_counts(loader.dataset, args.num_classes, settings.class_counts)
        updates = -(-len(loader) // max(1, args.grad_accum_steps))
        epoch = start_epoch(settings.start, args, updates)
        mbj_loss = settings.criterion(counts, criterion, round(epoch * len(loader)), args.seed, args.smoothing)
        if verbose:
            _logger.info(
                f"MBJ: {settings}, memory loss from epoch {epoch:g}, {counts.min()} to {counts.max()} images a class"
            )
        super().__init__(model, mbj_loss, device=device, dtype=dtype, verbose=verbose)
        if settings.diagnostics and rank_and_world()[0] == 0:
            _SUMMARY.watch(make_monitor(model, mbj_loss, counts, loader, evaluation_loader), len(loader))


class _Summary:
    """timm's ``update_summary``, which train.py calls after each epoch, with the diagnostics of the last task."""

    def __init__(self, update_summary: Callable[..., None]) -> None:
        self.update_summary = update_summary
        self.watch(None, 0)

    def watch(self, monitor: Monitor | None, iterations: int) -> None:
        self.monitor, self.iterations = monitor, iterations
        self.diagnostics: EpochDiagnostics | None = None

    def __call__(
        self,
        epoch: int,
        train_metrics: dict[str, float],
        eval_metrics: dict[str, float] | None,
        filename: str,
        lr: float | None = None,
        write_header: bool | None = None,
        log_wandb: bool = False,
    ) -> None:
        """As timm's; the first epoch that is reported is the one that the run began or went on with."""
        if self.monitor is not None:
            if self.diagnostics is None:
                folder = os.path.dirname(filename)
                self.diagnostics = EpochDiagnostics(self.monitor, folder, epoch, self.iterations)
            # A new dict: train.py prints its own at the end, as JSON.
            train_metrics = {**train_metrics, **self.diagnostics.report(epoch)}
        if not write_header:
            train_metrics = fit_columns(train_metrics, filename)
        self.update_summary(epoch, train_metrics, eval_metrics, filename, lr, write_header, log_wandb)


def _training_run() -> tuple[Namespace, Any, Any]:
    """Arguments, training loader and evaluation loader (None without) of the script that is building its task.

    train.py hands none to the task, and keeps them as locals of the function that builds it.
    """
    frame = sys._getframe(1)
    while frame is not None:
        values = frame.f_locals
        if isinstance(values.get("args"), Namespace) and "loader_train" in values:
            return values["args"], values["loader_train"], values.get("loader_eval")
        frame = frame.f_back  # type: ignore[assignment]
    raise ValueError(
        "mbj_plugin.timm.enable is for timm's train.py, which has `args` and `loader_train` where it builds its task: "
        "in a script of your own, build MBJTask(model, MBJLoss(class_counts)) instead"
    )


def _new(cls: type, *args: Any, **kwargs: Any) -> Any:
    # train.py has imported the class before it imports us, so the name cannot be replaced, but what it makes can.
    if cls is ClassificationTask:
        return object.__new__(EnabledTask)
    if cls.__module__.startswith("timm."):
        raise ValueError(
            f"mbj_plugin.timm.enable trains single-label classification, and this run is a {cls.__name__}: leave out "
            "--kd-model-name and other tasks, or the module"
        )
    return object.__new__(cls)


_SUMMARY = _Summary(utils.update_summary)
clip.install()
utils.update_summary = _SUMMARY  # train.py calls it by this name
TrainingTask.__new__ = staticmethod(_new)  # type: ignore[assignment]
