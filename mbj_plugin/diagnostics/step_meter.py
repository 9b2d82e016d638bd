"""What is measured in every step: summed on the device, read once an epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from mbj_plugin.memory import MemoryBank

SEEN_EVERY = 4  # steps between two batches whose positives are counted: it keeps the cost far below 1 % of a step
SUMMED_EVERY = 64  # steps whose losses wait on the device before they are summed up


class StepMeter:
    """Mean of both losses over all steps, and the share of samples with a positive in memory over every fourth; never
    waits for the device.

    Args:
        num_classes: C.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._start_anew()

    def _start_anew(self) -> None:
        self._losses: list[Tensor] = []  # L_memory and L_batch of the last steps, in turn
        self._sums: list[Tensor] = []  # (2,) of the steps before
        self._positives: list[Tensor] = []
        self._samples = self._steps = 0

    @torch.no_grad()
    def count_positives(self, labels: Tensor, banks: Iterable[MemoryBank]) -> None:
        """Count the samples whose class is in a memory, before the step puts its own rows there.

        Args:
            labels: (B,) classes, negative = unlabelled, which has no positive; or (B, C) class probabilities, which
                count as the share of their classes.
            banks: the memories; a class counts as present where one of them has it.
        """
        if self._steps % SEEN_EVERY:
            return
        present = torch.zeros(self.num_classes + 1, device=labels.device)  # slot 0: unlabelled, and empty slots
        for bank in banks:
            present.index_fill_(0, bank.labels + 1, 1.0)
        present[0] = 0.0
        hits = present[labels.clamp(min=-1) + 1] if labels.ndim == 1 else labels.float() * present[1:]
        self._positives.append(hits.sum())
        self._samples += len(labels)

    @torch.no_grad()
    def close_step(self, loss_memory: Tensor, loss_batch: Tensor) -> None:
        """End the step with its losses: eta * L_memory and L_batch, both scalars."""
        self._losses += [loss_memory.detach().float(), loss_batch.detach().float()]
        self._steps += 1
        if self._steps % SUMMED_EVERY == 0:
            self._sum_up()

    def _sum_up(self) -> None:
        self._sums.append(torch.stack(self._losses).view(-1, 2).sum(0))
        self._losses = []

    def scalars(self) -> dict[str, float]:
        """Means since the last call, NaN where no step was seen; then it starts anew."""
        memory = batch = positives = math.nan
        if self._losses:
            self._sum_up()
        if self._sums:
            memory, batch = (torch.stack(self._sums).cpu().double().sum(0) / self._steps).tolist()
        if self._positives:
            positives = torch.stack(self._positives).sum().item() / self._samples
        self._start_anew()
        return {"mbj/loss_memory": memory, "mbj/loss_batch": batch, "mbj/positive_share": positives}
