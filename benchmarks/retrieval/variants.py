"""MBJ-W with the pull to one's own prototypes alone: what is a remembered prototype worth beside a wider margin?

``MBJPositivesHead`` is what a method of the settings names (``HEADS: {NAME: ...}``) in place of ``MBJHead``, with the
same MODEL.MBJ; its one memory is of prototypes. What it gave, and what other readings gave: docs/results/choices.md.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fastreid.modeling.heads import REID_HEADS_REGISTRY
from torch import Tensor

from mbj_plugin.fastreid.head import MBJHead
from mbj_plugin.functional import multi_prototype_loss
from mbj_plugin.losses import PrototypeMemoryLoss


class PositivesLoss(PrototypeMemoryLoss):
    """The value of Eq. 4, but its gradient through the positives alone: a feature is drawn to its identity's past
    prototypes, and not pushed off others'."""

    def _memory_loss(self, features: Tensor, labels: Tensor) -> Tensor:
        similarity = F.normalize(features.float(), dim=1) @ F.normalize(self.bank.rows, dim=1).T
        similarity = torch.where(labels[:, None] == self.bank.labels, similarity, similarity.detach())
        return multi_prototype_loss(similarity, labels, self.bank.labels, self.scale, self.margin)


@REID_HEADS_REGISTRY.register()
class MBJPositivesHead(MBJHead):
    """MBJHead with :class:`PositivesLoss`."""

    def __init__(self, cfg) -> None:
        super().__init__(cfg)
        given = self.memories["prototype"]
        assert isinstance(given, PrototypeMemoryLoss) and len(self.memories) == 1
        shared = {name: getattr(given, name) for name in ("eta", "beta", "norm", "scale", "margin")}
        self.memories["prototype"] = PositivesLoss(  # type: ignore[index]
            None, given.bank.dim, given.bank.size, num_classes=len(self.weight), **shared
        )
