"""When the memory loss starts: a number of epochs, a fraction of the run, or the schedule's first decay."""

from __future__ import annotations

from argparse import Namespace

import torch
from timm.scheduler import create_scheduler_v2, scheduler_kwargs


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


def first_decay(rates: list[float], stepwise: bool) -> int:
    """Epoch of the first decay: where the rate first falls after its peak.

    A smooth schedule (cosine, say) falls from the first step on; there it is the epoch where the rate first is at most
    half its peak. Where the rate never falls it is 60 % of the run, the paper's 120 of 200 epochs.
    """
    peak = max(rates)
    bound = peak * (1 - 1e-9) if stepwise else peak / 2
    after_peak = rates.index(peak)
    for epoch in range(after_peak, len(rates)):
        if rates[epoch] <= bound:
            return epoch
    return round(0.6 * len(rates))


def parse_start(start: str | int | float) -> str | float:
    """ "auto", or a number >= 0.

    Raises:
        ValueError: for anything else.
    """
    if start == "auto":
        return "auto"
    try:
        value = float(start)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ValueError(
            f"the start must be 'auto', a number of epochs, or a fraction of the run below 1, got {start!r}"
        )
    return value


def start_epoch(start: str | int | float, args: Namespace, updates_per_epoch: int) -> float:
    """Epoch at which the memory loss starts.

    Args:
        start: "auto" (the schedule's first decay), a fraction of the run (0 < start < 1), or epochs (0, or >= 1).
        args: timm's training arguments.
        updates_per_epoch: optimizer steps in an epoch.

    Raises:
        ValueError: for a start past the end of the run.
    """
    value = parse_start(start)
    rates = learning_rates(args, updates_per_epoch)
    if value == "auto":
        return float(first_decay(rates, stepwise=args.sched in ("step", "multistep")))
    assert isinstance(value, float)
    epoch = value * len(rates) if value < 1 else value
    if epoch >= len(rates):
        raise ValueError(
            f"the memory loss would start at epoch {start}, past the end of the run of {len(rates)} epochs"
        )
    return epoch
