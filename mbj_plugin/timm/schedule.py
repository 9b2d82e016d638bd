"""The first decay of timm's schedules, and the epoch at which the memory loss starts."""

from __future__ import annotations

from argparse import Namespace

import torch
from timm.scheduler import create_scheduler_v2, scheduler_kwargs

from mbj_plugin.start import Start, start_at


def learning_rates(args: Namespace, updates_per_epoch: int) -> list[float]:
    """Learning rate at the beginning of each epoch, relative to the optimizer's, by timm's own scheduler.

    Args:
        args: timm's training arguments (``sched``, ``epochs``, ``warmup_epochs``, ...).
        updates_per_epoch: optimizer steps in an epoch.
    """
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=float(args.lr or 1.0))
    scheduler, num_epochs = create_scheduler_v2(
        optimizer, **scheduler_kwargs(args, decreasing_metric=False), updates_per_epoch=updates_per_epoch
    )
    rates = []
    for epoch in range(num_epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        if scheduler is not None and not args.sched.startswith("plateau"):
            scheduler.step(epoch + 1)
            scheduler.step_update((epoch + 1) * updates_per_epoch)
    return rates


def first_decay(rates: list[float], stepwise: bool) -> int | None:
    """Epoch of the first decay: where the rate first falls after its peak; None where it never does.

    A smooth schedule (cosine, say) falls from the first step on; there it is the epoch where the rate first is at most
    half its peak.
    """
    peak = max(rates)
    bound = peak * (1 - 1e-9) if stepwise else peak / 2
    return next((epoch for epoch in range(rates.index(peak), len(rates)) if rates[epoch] <= bound), None)


def start_epoch(start: Start, sched: str, rates: list[float]) -> float:
    """Epoch at which the memory loss starts.

    Args:
        start: of MBJ's settings, in epochs.
        sched: timm's name of the schedule.
        rates: of :func:`learning_rates`, one for each epoch of the run.

    Raises:
        ValueError: for a start past the end of the run.
    """
    decay = first_decay(rates, stepwise=sched in ("step", "multistep"))
    return float(start_at(start, len(rates), decay, "epochs"))
