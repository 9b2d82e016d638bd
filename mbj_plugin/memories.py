"""The memories of a run, made of its settings, and the sum of their losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from mbj_plugin.checks import Counts
from mbj_plugin.losses import FeatureMemoryLoss, PrototypeMemoryLoss
from mbj_plugin.memory import MemoryBank
from mbj_plugin.settings import MBJSettings


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
        class_counts: Counts | None,
        dim: int,
        start: int = 0,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        shared: dict[str, Any] = {name: getattr(settings, name) for name in ("beta", "norm")}
        shared |= {"start": start, "seed": settings.seed or 0}
        if "feature" in settings.kinds:
            own = {"sample": settings.sample, **settings.of("feature")}
            self["feature"] = FeatureMemoryLoss(class_counts, dim, **own, **shared)
        if "prototype" in settings.kinds:
            own = {name: getattr(settings, name) for name in ("scale", "margin", "momentum")}
            own |= settings.of("prototype")
            self["prototype"] = PrototypeMemoryLoss(class_counts, dim, num_classes=num_classes, **own, **shared)

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
        losses = []
        for kind, loss in self.items():
            features, *classifier = inputs[kind]()
            losses.append(loss(features, labels, *classifier))
        return sum(losses[1:], losses[0])
