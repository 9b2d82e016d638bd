"""The memories of a run, made of its settings, and the sum of their losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mbj_plugin.losses import FeatureMemoryLoss, PrototypeMemoryLoss
from mbj_plugin.memory import MemoryBank
from mbj_plugin.settings import MBJSettings

MemoryLoss = FeatureMemoryLoss | PrototypeMemoryLoss


class Memories(nn.ModuleDict):
    """ "feature" and "prototype", those that the settings name, to their losses.

    Args:
        settings: of the run; its ``start`` is in the host's unit and not read here.
        class_counts: (C,) training images per class; None where they come later, by ``set_class_counts``.
        dim: D, length of a feature.
        start: calls before the losses count.
        num_classes: C, needed only where ``class_counts`` come later.
    """

    def __init__(
        self,
        settings: MBJSettings,
        class_counts: Tensor | Sequence[int] | None,
        dim: int,
        start: int = 0,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        s = settings
        shared: dict[str, Any] = {"beta": s.beta, "norm": s.norm, "start": start, "seed": s.seed or 0, "ramp": s.ramp}
        # What is None has a default of its own in each loss.
        shared |= {name: value for name, value in (("size", s.size), ("eta", s.eta)) if value is not None}
        if "feature" in s.kinds:
            self["feature"] = FeatureMemoryLoss(
                class_counts, dim, prior_correction=s.prior_correction, sample=s.sample, **shared
            )
        if "prototype" in s.kinds:
            self["prototype"] = PrototypeMemoryLoss(
                class_counts,
                dim,
                scale=s.scale,
                margin=s.margin,
                momentum=s.momentum,
                interval=s.interval,
                num_classes=num_classes,
                **shared,
            )

    @property
    def banks(self) -> list[MemoryBank]:
        """Of each memory, what it holds."""
        return [loss.bank for loss in self.values()]  # type: ignore[misc]

    def forward(self, labels: Tensor, inputs: Mapping[str, Callable[[], tuple[Tensor, ...]]]) -> Tensor:
        """Sum of eta * L_memory over the memories, each of which then remembers.

        Args:
            labels: (B,) classes, or (B, C) class probabilities.
            inputs: kind of memory to what gives its features and its classifier, as its loss takes them but for labels.

        Returns:
            Scalar.
        """
        total = labels.new_zeros((), dtype=torch.float32)
        for kind, loss in self.items():
            features, *classifier = inputs[kind]()
            total = total + loss(features, labels, *classifier)
        return total
