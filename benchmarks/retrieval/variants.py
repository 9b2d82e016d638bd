"""Other readings of MBJ-W's loss, for the question what a remembered prototype is worth beside a wider margin.

Each is a head that a method of the settings names (``HEADS: {NAME: ...}``) in place of ``MBJHead``, with the same
MODEL.MBJ; its one memory is of prototypes. What they gave, and why none is installed: docs/results/choices.md.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fastreid.modeling.heads import REID_HEADS_REGISTRY
from torch import Tensor, nn

from mbj_plugin.fastreid.head import MBJHead
from mbj_plugin.functional import multi_prototype_loss
from mbj_plugin.losses import PrototypeMemoryLoss


class OwnProjectionLoss(PrototypeMemoryLoss):
    """L_memory on a linear projection of the features, (D, D), learnt by L_memory alone and the identity at first.

    What L_memory asks for can be met by the projection, which retrieval throws away, as a classifier of its own is
    for MBJ-F; only what cannot reaches the features.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.projection = nn.Parameter(torch.eye(self.bank.dim))

    def forward(self, features: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
        """As :class:`PrototypeMemoryLoss`."""
        return super().forward(F.linear(features, self.projection), labels, weight)


class IdentityMeansLoss(PrototypeMemoryLoss):
    """Remembers, in place of the classifier's prototypes, the mean direction of each identity's features over the last
    whole epoch; that of an earlier one where the last had none. An identity without any has nothing to remember."""

    means: Tensor
    sums: Tensor

    def __init__(self, *args, num_classes: int, **kwargs) -> None:
        super().__init__(*args, num_classes=num_classes, **kwargs)
        self.epoch_steps = 0
        # NaN: a row that the bank does not store.
        self.register_buffer("means", torch.full((num_classes, self.bank.dim), torch.nan), persistent=False)
        self.register_buffer("sums", torch.zeros(num_classes, self.bank.dim), persistent=False)

    def forward(self, features: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
        """As :class:`PrototypeMemoryLoss`, but for ``weight``, whose rows are not remembered."""
        loss = super().forward(features, labels, self.means)
        self.sums.index_add_(0, labels, F.normalize(features.detach().float(), dim=1))
        if int(self.step) % self.epoch_steps == 0:  # the step has been counted
            seen = self.sums.any(dim=1)
            self.means[seen] = F.normalize(self.sums[seen], dim=1)
            self.sums.zero_()
        return loss


class PairsLoss(PrototypeMemoryLoss):
    """Eq. 4 over changed similarities; see :meth:`pairs`."""

    def _memory_loss(self, features: Tensor, labels: Tensor) -> Tensor:
        rows = F.normalize(self.bank.rows, dim=1)
        similarity = self.pairs(F.normalize(features.float(), dim=1) @ rows.T, labels[:, None] == self.bank.labels)
        return self._weighted(multi_prototype_loss(similarity, labels, self.bank.labels, self.scale, self.margin))

    def pairs(self, similarity: Tensor, same: Tensor) -> Tensor:
        """(B, M) similarities that Eq. 4 takes.

        Args:
            similarity: (B, M) cosines of features and remembered prototypes.
            same: (B, M) bool, whether they are of one identity.
        """
        raise NotImplementedError


class PositivesLoss(PairsLoss):
    """The value of Eq. 4, but its gradient through the positives alone: a feature is drawn to its identity's past
    prototypes, and not pushed off others'."""

    def pairs(self, similarity: Tensor, same: Tensor) -> Tensor:
        """See :class:`PairsLoss`."""
        return torch.where(same, similarity, similarity.detach())


class NegativesLoss(PairsLoss):
    """The value of Eq. 4, but its gradient through the negatives alone."""

    def pairs(self, similarity: Tensor, same: Tensor) -> Tensor:
        """See :class:`PairsLoss`."""
        return torch.where(same, similarity.detach(), similarity)


class TailNegativesLoss(PairsLoss):
    """Eq. 4 with the prototypes of the smallest identities as the only negatives."""

    def pairs(self, similarity: Tensor, same: Tensor) -> Tensor:
        """See :class:`PairsLoss`."""
        assert self.class_counts is not None
        tail = (self.class_counts == self.class_counts.min())[self.bank.labels.clamp(min=0)]
        # exp(scale * (-100 + margin)) is 0.
        return torch.where(same | tail, similarity, -100.0)


class _VariantHead(MBJHead):
    """MBJHead with another loss of its prototype memory."""

    loss: type[PrototypeMemoryLoss]

    def __init__(self, cfg) -> None:
        super().__init__(cfg)
        given = self.memories["prototype"]
        assert isinstance(given, PrototypeMemoryLoss) and len(self.memories) == 1
        shared = {name: getattr(given, name) for name in ("eta", "beta", "norm", "scale", "margin")}
        self.memories["prototype"] = self.loss(  # type: ignore[index]
            None, given.bank.dim, given.bank.size, num_classes=len(self.weight), **shared
        )

    def describe_training_set(self, class_counts: Tensor, iters_per_epoch: int) -> None:
        """As MBJHead."""
        super().describe_training_set(class_counts, iters_per_epoch)
        memory = self.memories["prototype"]
        if isinstance(memory, IdentityMeansLoss):
            memory.epoch_steps = iters_per_epoch


# MBJOwnProjectionHead has OwnProjectionLoss, and so on.
for _loss in (OwnProjectionLoss, IdentityMeansLoss, PositivesLoss, NegativesLoss, TailNegativesLoss):
    _name = f"MBJ{_loss.__name__.removesuffix('Loss')}Head"
    REID_HEADS_REGISTRY.register(type(_name, (_VariantHead,), {"loss": _loss}))
