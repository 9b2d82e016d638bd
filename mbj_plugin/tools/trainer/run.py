"""Everything that a run is made of, put together and, where asked for, brought to where it was."""

from __future__ import annotations

import dataclasses
import logging
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm import utils
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.task import load_task_ema_checkpoint

from mbj_plugin.timm import MBJLoss, clip
from mbj_plugin.timm.schedule import learning_rates, start_epoch
from mbj_plugin.timm.settings import from_args
from mbj_plugin.tools.trainer import build
from mbj_plugin.tools.trainer.checkpoint import ResumableMBJTask, ResumableTask, undamaged
from mbj_plugin.tools.trainer.dataset_summary import DataFacts, class_names, memory_lines
from mbj_plugin.tools.trainer.resume import Resumed, saved_start

# Share of initial weights from which on an average is no better than the model.
YOUNG = 0.05
_logger = logging.getLogger("mbj_plugin")


@dataclasses.dataclass
class TrainingRun:
    """Everything that the training loop touches."""

    args: Namespace
    device: torch.device
    data: build.Data
    task: Any
    optimizer: torch.optim.Optimizer
    scheduler: Any
    num_epochs: int
    first_epoch: int
    amp_autocast: Callable
    loss_scaler: Any
    facts: DataFacts
    #: (C,) what the batch classifier's logits are adjusted by; None where they are as they should be.
    log_prior: torch.Tensor | None = None
    #: Share of the averaged model that is still the initial weights at the end; 0 without an average.
    initial_share: float = 0.0

    @property
    def choice(self) -> str:
        """The classifier that the run was started for."""
        return "memory" if self.args.mbj else "batch"


def make_run(args: Namespace) -> TrainingRun:
    """Build data, model, task, optimizer and schedule, in the order of timm's train.py; resume where asked for."""
    settings = from_args(args)
    device = build.init_device(args)
    utils.random_seed(args.seed, args.rank)
    datasets = build.make_datasets(args)
    model = build.make_model(args, device)
    amp_autocast, loss_scaler = build.make_amp(args, device)
    data = build.make_loaders(args, model, datasets, device)
    build.check_input(args, model, device)
    facts = _facts(datasets, data.counts)
    args.lr = args.lr or build.scaled_lr(args)
    updates_per_epoch = -(-len(data.train) // args.grad_accum_steps)

    start = start_epoch(settings.start, args.sched, learning_rates(args, updates_per_epoch))
    calls = round(start * len(data.train))
    batch_loss = build.make_batch_loss(args, data.counts, calls).to(device)
    task: Any
    if args.mbj:
        clip.install()
        settings = settings.with_seed(args.seed)
        criterion = MBJLoss(data.counts, batch_loss, settings, start=calls, smoothing=args.smoothing)
        task = ResumableMBJTask(model, criterion, device=device, verbose=False)
    else:
        task = ResumableTask(model, batch_loss, device=device, verbose=False)
    optimizer = build.make_optimizer(args, task.get_trainable_module())
    checkpoint = None
    if args.resume:
        with undamaged(args.resume):
            checkpoint = Resumed(task, args, optimizer, loss_scaler, facts)
    _wrap(task, args, device)
    scheduler, num_epochs = create_scheduler_v2(
        optimizer,
        **scheduler_kwargs(args),
        updates_per_epoch=updates_per_epoch,
    )
    lines: list[str | None] = [facts.line()]
    if checkpoint is not None:
        with undamaged(args.resume):
            start, moved = checkpoint.keep_start(start, len(data.train))
            lines.append(moved)
            if scheduler is not None:
                checkpoint.resume_schedule(scheduler, updates_per_epoch)
            checkpoint.set_random_state()
    if args.mbj:
        lines += memory_lines(task.criterion.memories, facts, start, num_epochs, len(data.train))
    share = 0.0
    if args.model_ema and not args.model_ema_warmup:
        updates = num_epochs * updates_per_epoch
        share = args.model_ema_decay**updates
        if share > YOUNG:
            lines.append(
                f"--model-ema: after {updates} updates {share:.0%} of the average is still the initial weights. "
                "--model-ema-warmup shortens it; the model that is not averaged is reported too."
            )
    if utils.is_primary(args):
        for line in filter(None, lines):
            _logger.info(line)
    task.run_state = lambda: {
        "data": facts.state(),
        "start": saved_start(task, start),
    }
    first_epoch = checkpoint.epoch if checkpoint is not None else 0
    done = first_epoch == num_epochs and (Path(args.resume).parent / "results.json").is_file()
    if checkpoint is not None and (done or first_epoch > num_epochs):
        raise ValueError(f"{args.resume} has trained {first_epoch} epochs: ask for more by --epochs, got {args.epochs}")
    return TrainingRun(
        *(args, device, data, task, optimizer, scheduler, num_epochs, first_epoch, amp_autocast, loss_scaler, facts),
        log_prior=_log_prior(args, data.counts, device),
        initial_share=share,
    )


def _log_prior(args: Namespace, counts: np.ndarray, device: torch.device) -> torch.Tensor | None:
    """Log of the classes' shares in what the batch classifier saw; None where its loss is balanced, or not known."""
    if args.loss not in ("ce", "focal") or args.bce_loss or args.sampler == "class-balanced":
        return None
    seen = np.sqrt(counts) if args.sampler == "square-root" else counts
    return torch.tensor(np.log(np.maximum(seen, 1) / seen.sum()), dtype=torch.float32, device=device)


def _facts(datasets: tuple[Any, Any], counts: np.ndarray) -> DataFacts:
    names = class_names(datasets[0])
    names = names if names is not None and len(names) == len(counts) else None
    return DataFacts(counts, names, len(datasets[1]) if hasattr(datasets[1], "__len__") else None)


def _wrap(task: Any, args: Namespace, device: torch.device) -> None:
    """Average, compile and distribute the model, in timm's order."""
    if args.model_ema:
        task.setup_ema(decay=args.model_ema_decay, use_warmup=args.model_ema_warmup)
        if args.resume:
            with undamaged(args.resume):
                load_task_ema_checkpoint(task, args.resume)
    if args.torchcompile:
        if args.torchcompile not in torch._dynamo.list_backends(None):
            raise ValueError(
                f"--torchcompile {args.torchcompile}: torch has {', '.join(torch._dynamo.list_backends())}"
            )
        torch.compiler.reset()  # torch guards on no hook: the graph of a run before this one would pass MBJ's by
        task.compile(backend=args.torchcompile, mode=args.torchcompile_mode)
        if task.has_ema():
            task.compile_ema(backend=args.torchcompile, mode=args.torchcompile_mode)
    if args.world_size > 1:
        device_ids = None if device.type == "cpu" else [device]
        task.prepare_distributed(device_ids=device_ids, broadcast_buffers=not args.no_ddp_bb)
