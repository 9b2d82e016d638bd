"""A thin trainer from timm's own factories: what timm's train.py does, for long-tailed data, with or without MBJ.

On the flags that both have, and with ``--workers 0``, it trains the same bits as timm's train.py.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from argparse import Namespace
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from timm import utils
from torch import Tensor
from tqdm import tqdm

from mbj_plugin.command_line import one_line
from mbj_plugin.files import write
from mbj_plugin.tools.trainer import series
from mbj_plugin.tools.trainer.args import parse_args
from mbj_plugin.tools.trainer.evaluate import Metrics, validate
from mbj_plugin.tools.trainer.run import YOUNG, TrainingRun, make_run
from mbj_plugin.tools.trainer.run_folder import (
    check_folder,
    log_epoch,
    make_saver,
    open_folder,
    result,
    wandb_run,
    writing_run,
)

_logger = logging.getLogger("mbj_plugin")


def main(argv: Sequence[str] | None = None) -> None:
    """The command ``train_timm``: train, and print the test error of all classes and of each class group."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    logging.getLogger("timm").setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").propagate = False  # it prints its own lines
    with one_line("mbj train"):
        args = parse_args(argv)
        results = series.train_all(args, train)
        if int(os.environ.get("RANK", 0)) == 0:
            print(series.table(results, args.table))
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def train(args: Namespace, name: str = "") -> dict[str, Any]:
    """Train one model, ``name`` of several; what results.json holds is returned.

    A wrong value is a ValueError that names it and the fix, before any training.
    """
    started = time.time()
    check_folder(args)
    run = make_run(args)
    if not utils.is_primary(args):
        return _epochs(run, None, started)
    with open_folder(args, run.data.train.dataset, run.first_epoch) as folder:
        if name:
            _logger.info(f"{name}: {folder}")
        try:
            return _epochs(run, folder, started)
        except KeyboardInterrupt:
            last = folder / "last.pth.tar"
            go_on = f"go on by --resume {last}" if last.is_file() else "no epoch was saved yet"
            raise KeyboardInterrupt(go_on) from None


def _epochs(run: TrainingRun, folder: Path | None, started: float) -> dict[str, Any]:
    """The epochs that are left, each evaluated and saved; ``folder`` is the first rank's alone."""
    args = run.args
    saver = make_saver(run, folder) if folder else None
    best = (saver.best_metric, saver.best_epoch) if saver else (None, None)
    metrics = _evaluate(run) if run.first_epoch >= run.num_epochs else None
    diverged = False
    begun = time.monotonic()
    with wandb_run(args) if folder is not None else nullcontext(False) as log_wandb:
        for epoch in range(run.first_epoch, run.num_epochs):
            train_metrics = train_one_epoch(run, epoch)
            if folder is not None and not all(map(math.isfinite, train_metrics.values())) and not diverged:
                diverged = True
                _logger.warning(
                    f"The training loss is {sum(train_metrics.values())} from epoch {epoch} on: lower --lr, or bound "
                    "the gradient with --clip-grad 1."
                )
            metrics = _evaluate(run)
            # Before the checkpoint, so that the next epoch after a resume draws what it would have drawn.
            run.task.remember_rng()
            if folder is not None and saver is not None:
                with writing_run(folder):
                    seconds = (time.monotonic() - begun) / (epoch + 1 - run.first_epoch) * (run.num_epochs - epoch - 1)
                    log_epoch(run, epoch, train_metrics, metrics, folder, log_wandb, seconds)
                    best = saver.save_checkpoint(epoch, metric=metrics[run.choice][args.eval_metric])
            if run.scheduler is not None:
                run.scheduler.step(epoch + 1)
    assert metrics is not None
    plain = _evaluate(run, averaged=False) if run.initial_share > YOUNG else {}
    results = result(run, metrics, plain, best, time.time() - started)
    if folder is not None:
        with writing_run(folder):
            write(folder / "results.json", json.dumps(results, indent=1))
        _logger.info(f"Written to {folder}: results.json, summary.csv, args.yaml and the checkpoints.")
    return results


def train_one_epoch(run: TrainingRun, epoch: int) -> dict[str, float]:
    """One pass over the training set, step for step as timm's train.py does it.

    Returns:
        Mean "loss", that of the features: the curve of a run without MBJ; with MBJ also "loss_memory" (eta * L_memory)
        and, of a classifier of its own, its batch loss "loss_classifier".
    """
    args, loader, task = run.args, run.data.train, run.task
    if hasattr(loader.sampler, "set_epoch"):
        loader.sampler.set_epoch(epoch)
    if args.mixup_off_epoch and epoch >= args.mixup_off_epoch:
        for mixes in (loader, run.data.mixup_fn):
            if mixes is not None:
                mixes.mixup_enabled = False
    batches, rest = len(loader), len(loader) % args.grad_accum_steps
    updates = epoch * -(-batches // args.grad_accum_steps)
    sums: dict[str, Tensor] = {}
    task.get_trainable_module().train()
    run.optimizer.zero_grad()
    # None lets tqdm decide: a bar on a terminal, nothing in a log file.
    disable = True if args.rank > 0 or args.progress is False else None if args.progress is None else False
    bar = tqdm(loader, f"epoch {epoch}/{run.num_epochs - 1}", leave=False, disable=disable)
    for index, (images, target) in enumerate(bar):
        need_update = index == batches - 1 or (index + 1) % args.grad_accum_steps == 0
        losses = _step(run, images, target, need_update, rest if index >= batches - rest else args.grad_accum_steps)
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value.double()
        if need_update:
            updates += 1
            run.optimizer.zero_grad()
            task.update_ema(step=updates)
            if run.scheduler is not None:
                run.scheduler.step_update(num_updates=updates, metric=None)
    if hasattr(run.optimizer, "sync_lookahead"):
        run.optimizer.sync_lookahead()
    means = {name: total / batches for name, total in sums.items()}
    if args.world_size > 1:
        means = {name: utils.reduce_tensor(mean, args.world_size) for name, mean in means.items()}
    return {name: mean.item() for name, mean in means.items()}


def _step(run: TrainingRun, images: Tensor, target: Tensor, need_update: bool, accum_steps: int) -> dict[str, Tensor]:
    """Forward and backward pass of one batch, and the optimizer's step where the gradient is complete."""
    args, task = run.args, run.task
    if not args.prefetcher:
        images, target = images.to(run.device), target.to(run.device)
        if run.data.mixup_fn is not None:
            images, target = run.data.mixup_fn(images, target)
    if args.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    with task.no_sync() if args.world_size > 1 and not need_update else nullcontext():
        with run.amp_autocast():
            output = task(images, target)
        loss = output["loss"] / accum_steps
        clipped = None
        if args.clip_grad is not None:
            clipped = task.get_clip_parameters(exclude_head="agc" in args.clip_mode)
        if run.loss_scaler is not None:
            run.loss_scaler(
                loss, run.optimizer, args.clip_grad, args.clip_mode, parameters=clipped, need_update=need_update
            )
        else:
            loss.backward()
            if need_update:
                if args.clip_grad is not None:
                    utils.dispatch_clip_grad(clipped, value=args.clip_grad, mode=args.clip_mode)
                run.optimizer.step()
    logged = {name: output[name].detach() for name in ("loss_classifier", "loss_memory") if name in output}
    return {"loss": output.get("loss_batch", output["loss"]).detach(), **logged}


def _evaluate(run: TrainingRun, averaged: bool = True) -> dict[str, Metrics]:
    """Metrics of each classifier of the model that will be used: the averaged one, where there is one."""
    args, task = run.args, run.task
    average = task.get_trainable_module(ema=True) if averaged else None
    if args.world_size > 1 and args.dist_bn in ("broadcast", "reduce"):
        for module in filter(None, (task.get_trainable_module(), average)):
            utils.distribute_bn(module, args.world_size, args.dist_bn == "reduce")
    if average is not None:
        # timm's train.py evaluates the plain model too and throws that away; here only what its loader draws is drawn.
        torch.empty((), dtype=torch.int64).random_()
    metrics = validate(
        task.get_eval_model(ema=average is not None),
        loader=run.data.evaluation,
        num_classes=args.num_classes,
        device=run.device,
        amp_autocast=run.amp_autocast,
        channels_last=args.channels_last,
        log_prior=run.log_prior,
    )
    if args.mbj and "memory" not in metrics:  # one classifier for both losses, which is no run without MBJ
        return {"memory": metrics["batch"]}
    return metrics
