"""Memory-based Jitter as two losses: a bank, the class-balanced draw of Eq. 1, and the loss on what was drawn.

MBJ-F of the paper is :class:`FeatureMemoryLoss`, MBJ-W is :class:`PrototypeMemoryLoss`, MBJ-WF is both side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from mbj_plugin.functional import memory_cross_entropy, multi_prototype_loss, sampling_probs
from mbj_plugin.memory import MemoryBank
from mbj_plugin.sampling import counter_uniform, hard_labels


class _MemoryLoss(nn.Module):
    """What both losses share: the bank, the probabilities of Eq. 1, the step, and when the loss starts."""

    probs: Tensor | None
    class_counts: Tensor | None
    step: Tensor
    seed: Tensor

    def __init__(
        self,
        class_counts: Tensor | Sequence[int] | None,
        dim: int,
        size: int,
        eta: float,
        beta: float,
        norm: str,
        start: int,
        seed: int,
        ramp: int,
    ) -> None:
        super().__init__()
        if not 0 <= eta < float("inf"):
            raise ValueError(f"eta must be a finite number >= 0 (0 turns the memory loss off), got {eta}")
        # Integral: NumPy's integers too. int is one as well, but type checkers do not know that.
        if not isinstance(start, int | Integral) or start < 0:
            raise ValueError(f"start must be a number of steps >= 0, got {start!r}")
        if not isinstance(ramp, int | Integral) or ramp < 0:
            raise ValueError(f"ramp must be a number of steps >= 0, got {ramp!r}")
        self.eta, self.beta, self.norm, self.start, self.ramp = float(eta), beta, norm, int(start), int(ramp)
        self.bank = MemoryBank(size, dim)
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.register_buffer("seed", torch.tensor(seed, dtype=torch.long))
        # Not saved: counts belong to the data, and whoever resumes has the data.
        self.register_buffer("probs", None, persistent=False)
        self.register_buffer("class_counts", None, persistent=False)
        if class_counts is not None:
            self.set_class_counts(class_counts)
        else:
            sampling_probs([1], beta, norm)  # a wrong beta or norm is an error now, not in the first step

    def set_class_counts(self, class_counts: Tensor | Sequence[int]) -> None:
        """Set the (C,) training images per class, where they were not known at construction."""
        device = self.bank.cursor.device
        self.probs = sampling_probs(class_counts, self.beta, self.norm).float().to(device)
        self.class_counts = torch.as_tensor(class_counts).float().to(device)

    def _class_probs(self, weight: Tensor) -> Tensor:
        if self.probs is None:
            raise ValueError("the class counts are not known: give class_counts, or call set_class_counts(counts)")
        if len(weight) != len(self.probs):
            raise ValueError(
                f"the weight has {len(weight)} classes, the class counts {len(self.probs)}: they must agree"
            )
        return self.probs

    def _weighted(self, loss: Tensor) -> Tensor:
        """eta * L_memory, 0 before the start. The step is on the device: no wait, and a CUDA graph sees it advance."""
        loss = self.eta * torch.where(self.step >= self.start, loss, torch.zeros_like(loss))
        if self.ramp:
            loss = loss * ((self.step - self.start + 1) / self.ramp).clamp(0, 1)
        return loss

    def _learning(self) -> bool:
        # Teachers and batch-norm recalibration run in train mode under no_grad: nothing of theirs is remembered.
        return self.training and torch.is_grad_enabled()

    def _uniform(self, count: int, stream: int) -> Tensor:
        return counter_uniform(self.seed, self.step, count, stream)

    def extra_repr(self) -> str:
        return f"eta={self.eta}, beta={self.beta}, norm={self.norm}, start={self.start}"


class FeatureMemoryLoss(_MemoryLoss):
    """MBJ-F: past features, favouring rare classes, train the classifier (paper, Section 3.2, Eq. 1 and 2).

    Each call returns eta * L_memory against what was remembered before this step; then, in training with grad enabled,
    each row of the batch enters the memory with probability P of its class. Add the result to the batch loss.

    Under ``torch.distributed`` features and labels of all ranks are gathered, so every rank remembers the same (each
    must pass the same number of rows). A rank computes only its share of L_memory, scaled such that the *mean* over
    ranks, which is what DistributedDataParallel makes of gradients, is L_memory.

    Args:
        class_counts: (C,) training images per class; None to give them later with :meth:`set_class_counts`.
        dim: Length D of a feature, the classifier's input.
        size: Slots of the memory; the paper uses 500 for CIFAR, 25,000 for iNaturalist18.
        eta: Weight of L_memory (Eq. 2), >= 0; 0 turns it off. The larger, the more the classifier leans to the tail.
        beta: Re-balancing strength of Eq. 1, >= 0.
        norm: "sum" (the paper's Eq. 1) or "max" (every row of the rarest class enters).
        start: Calls before the loss counts. The memory fills from the first call on.
        seed: of the draws; they use no global generator.
        ramp: Calls over which eta rises linearly after the start; 0 = at once.
        prior_correction: Not in the paper. The memory holds class c in proportion to N_c P_c; True adds the logarithm
            of that prior to the logits of L_memory (logit adjustment, https://arxiv.org/abs/2007.07314). beta then
            chooses what is remembered, and no longer leans the classifier to one end.

    Raises:
        ValueError: for a value out of range.
    """

    def __init__(
        self,
        class_counts: Tensor | Sequence[int] | None,
        dim: int,
        size: int = 500,
        eta: float = 15.0,
        beta: float = 1.5,
        norm: str = "sum",
        start: int = 0,
        *,
        seed: int = 0,
        ramp: int = 0,
        prior_correction: bool = False,
    ) -> None:
        super().__init__(class_counts, dim, size, eta, beta, norm, start, seed, ramp)
        self.prior_correction = prior_correction

    def forward(self, features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """eta * L_memory, then remember.

        Args:
            features: (B, D) inputs of the classifier; no gradient reaches them.
            labels: (B,) integer classes, negative = unlabelled; or (B, C) class probabilities (Mixup, CutMix), where a
                row enters with probability sum_c t_c P_c, under a class drawn in proportion to t_c P_c.
            weight: (C, D) weight of the classifier.
            bias: (C,) its bias, if it has one.

        Returns:
            Scalar.
        """
        probs, learning = self._class_probs(weight), self._learning()
        loss = self._memory_loss(weight, bias, *(rank_and_world() if learning else (0, 1)))
        if learning:
            # Gathered first, drawn after: the same draw on every rank.
            features, labels = _all_gather(features.detach().float()), _all_gather(labels)
            labels = hard_labels(labels, self._uniform(len(labels), stream=1))
            keep = self._uniform(len(labels), stream=0) < probs[labels.clamp(min=0)]
            self.bank.enqueue(features, labels, keep)
            self.step.add_(1)
        return loss

    def _memory_loss(self, weight: Tensor, bias: Tensor | None, rank: int, world: int) -> Tensor:
        if self.eta == 0:
            return weight.new_zeros(())
        if self.prior_correction:
            assert self.class_counts is not None
            log_prior = (self.class_counts * self._class_probs(weight)).log()
            bias = log_prior if bias is None else bias + log_prior
        # A copy, because the backward pass comes after the enqueue.
        rows, labels = self.bank.rows[rank::world].clone(), self.bank.labels[rank::world]
        loss = memory_cross_entropy(rows, labels, weight, bias)
        if world > 1:
            loss = loss * (labels >= 0).sum() * world / self.bank.filled.clamp(min=1)
        return self._weighted(loss)


class PrototypeMemoryLoss(_MemoryLoss):
    """MBJ-W: past classifier weights, favouring rare classes, train the embedding (paper, Section 3.3, Eq. 4 and 5).

    Each call returns eta * L_memory against what was remembered before this step; then, in training with grad enabled,
    the prototype of each class enters the memory with probability P of its class. Add the result to the batch loss.

    Ranks that hold equal weights remember the same without any traffic: the draw depends on seed and step alone.

    Args:
        class_counts: (C,) training images per class; None to give them later with :meth:`set_class_counts`.
        dim: Length D of a feature and of a prototype.
        size: Slots of the memory; the paper uses 3,500 for re-ID.
        eta: Weight of L_memory (Eq. 2), >= 0; 0 turns it off.
        beta: Re-balancing strength of Eq. 5, >= 0.
        norm: "sum" (the paper's Eq. 5: about one prototype a step) or "max" (the rarest class enters every step).
        start: Calls before the loss counts. The memory fills from the first call on.
        scale: alpha of Eq. 4, > 0.
        margin: delta of Eq. 4, >= 0.
        momentum: 0 remembers the weights themselves; m > 0 is the paper's MBJ*, which remembers an average that moves
            by (1 - m) a step.
        seed: of the draws; they use no global generator.
        ramp: Calls over which eta rises linearly after the start; 0 = at once.
        interval: Not in the paper. Prototypes enter in every ``interval``-th call only, so that a full memory reaches
            further back and its rows differ more.
        num_classes: C, needed only where ``momentum`` > 0 and ``class_counts`` come later.

    Raises:
        ValueError: for a value out of range.
    """

    momentum_weight: Tensor

    def __init__(
        self,
        class_counts: Tensor | Sequence[int] | None,
        dim: int,
        size: int = 3500,
        eta: float = 1 / 7,
        beta: float = 1.5,
        norm: str = "sum",
        start: int = 0,
        scale: float = 16.0,
        margin: float = 0.2,
        momentum: float = 0.0,
        *,
        seed: int = 0,
        ramp: int = 0,
        interval: int = 1,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(class_counts, dim, size, eta, beta, norm, start, seed, ramp)
        if not isinstance(interval, int | Integral) or interval < 1:
            raise ValueError(f"interval must be a number of calls >= 1, got {interval!r}")
        self.interval = int(interval)
        if not 0 < scale < float("inf"):
            raise ValueError(f"scale must be a finite number > 0, got {scale}")
        if not 0 <= margin < float("inf"):
            raise ValueError(f"margin must be a finite number >= 0, got {margin}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        self.scale, self.margin, self.momentum = float(scale), float(margin), float(momentum)
        if self.momentum:
            num_classes = len(class_counts) if class_counts is not None else num_classes
            if num_classes is None:
                raise ValueError("momentum > 0 needs the number of classes: give class_counts or num_classes")
            self.register_buffer("momentum_weight", torch.zeros(num_classes, dim))

    def forward(self, features: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
        """eta * L_memory, then remember.

        Args:
            features: (B, D) embeddings; L_memory is computed on their directions and its gradient reaches them.
            labels: (B,) integer classes, negative = unlabelled; or (B, C) class probabilities (Mixup, CutMix), of
                which one class is drawn.
            weight: (C, D) prototypes; no gradient reaches them.

        Returns:
            Scalar.
        """
        probs, learning = self._class_probs(weight), self._learning()
        labels = hard_labels(labels, self._uniform(len(labels), stream=1 + rank_and_world()[0]))
        loss = self._memory_loss(features, labels)
        if learning:
            keep = (self._uniform(len(probs), stream=0) < probs) & (self.step % self.interval == 0)
            self.bank.enqueue(self._prototypes(weight), torch.arange(len(probs), device=probs.device), keep)
            self.step.add_(1)
        return loss

    def _memory_loss(self, features: Tensor, labels: Tensor) -> Tensor:
        if self.eta == 0:
            return features.new_zeros(())
        dtype = torch.promote_types(features.dtype, torch.float32)
        with torch.autocast(features.device.type, enabled=False):
            rows = F.normalize(self.bank.rows.to(dtype, copy=True), dim=1)
            similarity = F.normalize(features.to(dtype), dim=1) @ rows.T
            loss = multi_prototype_loss(similarity, labels, self.bank.labels.clone(), self.scale, self.margin)
        return self._weighted(loss)

    @torch.no_grad()
    def _prototypes(self, weight: Tensor) -> Tensor:
        weight = weight.detach().float()
        if not self.momentum:
            return weight
        moved = self.momentum_weight.float().lerp(weight, 1 - self.momentum)
        self.momentum_weight.copy_(torch.where(self.step == 0, weight, moved))
        return self.momentum_weight


def rank_and_world() -> tuple[int, int]:
    """This rank and the number of ranks; (0, 1) without ``torch.distributed``."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _all_gather(tensor: Tensor) -> Tensor:
    """(world * B, ...) rows of all ranks, in the order of ranks. Every rank must bring the same number of rows."""
    _, world = rank_and_world()
    if world == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world)]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)
