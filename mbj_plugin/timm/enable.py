"""Importing this makes timm's own ``train.py`` train MBJ: ``python train.py --device-modules mbj_plugin.timm.enable``.

Settings come from the variable ``MBJ``, as ``MBJ="eta=15,norm=max,start=auto"``. timm imports the module before it
builds anything; from then on ``ClassificationTask(...)`` gives an :class:`MBJTask` over the criterion it is given.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timm.task import ClassificationTask
from torch import Tensor, nn

from mbj_plugin.command_line import one_line
from mbj_plugin.diagnostics import memories_report
from mbj_plugin.timm import clip
from mbj_plugin.timm.compat import (
    create_classification_loss,
    make_tasks_by,
    replace_update_summary,
    training_run,
)
from mbj_plugin.timm.counts import training_counts
from mbj_plugin.timm.criterion import MBJLoss
from mbj_plugin.timm.schedule import learning_rates, start_epoch
from mbj_plugin.timm.settings import from_text
from mbj_plugin.timm.task import MBJTask

_logger = logging.getLogger(__name__)


class EnabledTask(MBJTask):
    """What ``ClassificationTask(...)`` gives inside timm's ``train.py``: signature and criterion are train.py's own."""

    last: EnabledTask | None = None

    def __init__(
        self,
        model: nn.Module,
        criterion: Any = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
        criterion_kwargs: dict[str, Any] | None = None,
    ) -> None:
        args, loader = training_run()
        if criterion is None and criterion_kwargs:
            criterion = create_classification_loss(**criterion_kwargs)
        updates = -(-len(loader) // max(1, args.grad_accum_steps))
        rates = learning_rates(args, updates)
        with one_line("train.py"):
            settings = from_text(os.environ.get("MBJ", ""))
            counts = training_counts(loader.dataset, args.num_classes, settings.class_counts)
            epoch = start_epoch(settings.start, args.sched, rates)
            calls = round(epoch * len(loader))
            settings = settings.with_seed(args.seed)
            mbj_loss = MBJLoss(counts, criterion, settings, start=calls, smoothing=args.smoothing)
        if verbose:
            _logger.info(
                f"MBJ: {settings}, memory loss from epoch {epoch:g}, {counts.min()} to {counts.max()} images a class"
            )
        super().__init__(model, mbj_loss, device=device, dtype=dtype, verbose=verbose)
        self.iterations = len(loader)
        self.sums: dict[str, Tensor] = {}  # of the losses of the epoch's steps
        EnabledTask.last = self

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        result = super().forward(input, target)
        self.sums = {name: self.sums.get(name, 0) + part.float() for name, part in self.criterion.parts.items()}
        return result

    def end_epoch(self) -> dict[str, float]:
        """The epoch's mean losses, and what the memories hold after it."""
        losses = {name: total.item() / self.iterations for name, total in self.sums.items()}
        self.sums = {}
        return losses | memories_report([self.criterion.memories], self.criterion.class_counts)


def _with_diagnostics(update_summary: Callable[..., None]) -> Callable[..., None]:
    """timm's ``update_summary``, which train.py calls after each epoch on the first rank, with the last task's."""

    def update(
        epoch: int,
        train_metrics: dict[str, float],
        eval_metrics: dict[str, float] | None,
        filename: str,
        lr: float | None = None,
        write_header: bool | None = None,
        log_wandb: bool = False,
    ) -> None:
        if EnabledTask.last is not None:
            # A new dict: train.py prints its own at the end, as JSON.
            train_metrics = train_metrics | EnabledTask.last.end_epoch()
        if not write_header:
            train_metrics = _fit_columns(train_metrics, filename)
        update_summary(epoch, train_metrics, eval_metrics, filename, lr, write_header, log_wandb)

    return update


def _fit_columns(train_metrics: dict[str, float], summary: str) -> dict[str, float]:
    """The training metrics of a row of timm's summary.csv, which writes them in order under the header that is there.

    Where a run was resumed with or without MBJ, exactly the columns of that header, NaN in those that this run does not
    have. Older timm writes a new header there, and the last one counts.
    """
    lines = Path(summary).read_text().splitlines() if Path(summary).exists() else []
    headers = [line.split(",") for line in lines if line.startswith("epoch,")]
    if not headers:
        return train_metrics
    names = [name.removeprefix("train_") for name in headers[-1] if name.startswith("train_")]
    return {name: train_metrics.get(name, math.nan) for name in names}


def _new(cls: type, *args: Any, **kwargs: Any) -> Any:
    if cls is ClassificationTask:
        return object.__new__(EnabledTask)
    if cls.__module__.startswith("timm."):
        raise ValueError(
            f"mbj_plugin.timm.enable trains single-label classification, and this run is a {cls.__name__}: leave out "
            "--kd-model-name and other tasks, or the module"
        )
    return object.__new__(cls)


with one_line("train.py"):
    from_text(os.environ.get("MBJ", ""))  # a mistake is told before anything is built
replace_update_summary(_with_diagnostics)
clip.install()
make_tasks_by(_new)
