"""What is measured in every step: summed on the device, read once an epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from mbj_plugin.memory import MemoryBank


class StepMeter:
    """Mean over steps of both losses and of the share of samples with a positive in memory; never waits for the device.

    Args:
        num_classes: C.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._sums: Tensor | None = None  # (3,): L_memory, L_batch, positives
        self._positives: Tensor | None = None
        self._samples = 0
        self._steps = 0

    @torch.no_grad()
    def see(self, labels: Tensor, banks: Iterable[MemoryBank]) -> None:
        """Count the samples whose class is in a memory, before the step puts its own rows there.

        Args:
            labels: (B,) classes, negative = unlabelled, which has no positive; or (B, C) class probabilities, which
                count as the share of their classes.
            banks: the memories; a class counts as present where one of them has it.
        """
        present = torch.zeros(self.num_classes + 1, device=labels.device)  # slot 0: unlabelled, and empty slots
        for bank in banks:
            present.index_fill_(0, bank.labels + 1, 1.0)
        present[0] = 0.0
        hits = present[labels.clamp(min=-1) + 1] if labels.ndim == 1 else labels.float() * present[1:]
        self._positives = hits.sum()
        self._samples += len(labels)

    @torch.no_grad()
    def add(self, loss_memory: Tensor, loss_batch: Tensor) -> None:
        """Close the step: eta * L_memory and L_batch, both scalars."""
        values = [loss_memory.detach(), loss_batch.detach()]
        values.append(values[0].new_zeros(()) if self._positives is None else self._positives)
        step = torch.stack([value.float() for value in values])
        self._sums = step if self._sums is None else self._sums.add_(step)
        self._steps, self._positives = self._steps + 1, None

    def scalars(self) -> dict[str, float]:
        """Means since the last call, NaN where no step was seen; then it starts anew."""
        memory, batch, positives = self._sums.tolist() if self._sums is not None else (math.nan,) * 3
        steps, samples = max(self._steps, 1), max(self._samples, 1)
        self._sums, self._samples, self._steps = None, 0, 0
        return {
            "mbj/loss_memory": memory / steps,
            "mbj/loss_batch": batch / steps,
            "mbj/positive_share": positives / samples,
        }
