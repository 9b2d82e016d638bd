"""Memory-based Jitter as two losses: a bank, the class-balanced draw of Eq. 1, and the loss on what was drawn.

MBJ-F of the paper is :class:`FeatureMemoryLoss`, MBJ-W is :class:`PrototypeMemoryLoss`, MBJ-WF is both side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from mbj_plugin.clock import CountedModule, no_loss, rank_and_world
from mbj_plugin.functional import (
    backward_reads_features,
    counts_tensor,
    finite_cross_entropy,
    multi_prototype_loss,
    sampling_probs,
)
from mbj_plugin.memory import MemoryBank, as_of_now
from mbj_plugin.sampling import counter_uniform, hard_labels, sample_slots
from mbj_plugin.settings import checked


class _MemoryLoss(CountedModule):
    """What both losses share: the bank, the probabilities of Eq. 1, the step, and when the loss starts."""

    probs: Tensor | None
    class_counts: Tensor | None
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
        super().__init__(start)
        self.eta, self.ramp = checked("eta", eta), checked("ramp", ramp)
        self.beta, self.norm = checked("beta", beta), checked("norm", norm)
        self.bank = MemoryBank(size, dim)
        self.register_buffer("seed", torch.tensor(seed, dtype=torch.long))
        # Not saved: counts belong to the data, and whoever resumes has the data.
        self.register_buffer("probs", None, persistent=False)
        self.register_buffer("class_counts", None, persistent=False)
        if class_counts is not None:
            self.set_class_counts(class_counts)

    def set_class_counts(self, class_counts: Tensor | Sequence[int]) -> None:
        """Set the (C,) training images per class, where they were not known at construction."""
        device = self.bank.cursor.device
        self.probs = sampling_probs(class_counts, self.beta, self.norm).float().to(device)
        self.class_counts = counts_tensor(class_counts).float().to(device)

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
        step = as_of_now(self.step)
        loss = self.eta * torch.where(step >= self.start, loss, torch.zeros_like(loss))
        if self.ramp:
            loss = loss * ((step - self.start + 1) / self.ramp).clamp(max=1)
        return loss

    def _learning(self) -> bool:
        # Teachers and batch-norm recalibration run in train mode under no_grad: nothing of theirs is remembered.
        return self.training and torch.is_grad_enabled()

    def _uniform(self, count: int, stream: int) -> Tensor:
        return counter_uniform(self.seed, self.step, count, stream)

    def _hard_labels(self, labels: Tensor, stream: int) -> Tensor:
        return hard_labels(labels, self._uniform(len(labels), stream)) if labels.ndim == 2 else labels.long()

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
        sample: Not in the paper. K of the M rows, drawn anew for each step, stand for the memory in L_memory: the same
            expectation of loss and gradient at K / M of the cost. 0 or None = the whole memory.

    Raises:
        ValueError: for a value out of range.

    Example:
        >>> memory = FeatureMemoryLoss([100, 10], dim=2, size=4, norm="max")
        >>> features, labels, weight = torch.eye(2), torch.tensor([0, 1]), torch.zeros(2, 2)
        >>> memory(features, labels, weight)  # nothing is remembered yet
        tensor(0.)
        >>> memory(features, labels, weight)  # 15 log(2): the rare class is, and the classifier knows nothing
        tensor(10.3972)
        >>> memory.bank.labels
        tensor([ 1,  1, -1, -1])
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
        sample: int | None = 0,
    ) -> None:
        super().__init__(class_counts, dim, size, eta, beta, norm, start, seed, ramp)
        self.sample = checked("sample", sample or 0)
        if self.sample > size:
            raise ValueError(f"sample must be at most the memory's {size} rows, got {sample}")
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
            _check_even(features)
            features, labels = _all_gather(features.detach().float()), _all_gather(labels)
            labels = self._hard_labels(labels, stream=1)
            keep = self._uniform(len(labels), stream=0) < probs[labels.clamp(min=0)]
            self.bank.enqueue(features, labels, keep)
            self.count_call()
        return loss

    def _memory_loss(self, weight: Tensor, bias: Tensor | None, rank: int, world: int) -> Tensor:
        if self.eta == 0:
            return weight.new_zeros(())
        if self.idle():
            used = (weight,) if bias is None else (weight, bias)
            return no_loss(torch.promote_types(weight.dtype, torch.float32), *used)
        if self.prior_correction:
            assert self.class_counts is not None
            log_prior = (self.class_counts * self._class_probs(weight)).log()
            bias = log_prior if bias is None else bias + log_prior
        rows, labels, filled = self._rows(rank, world, len(weight))
        loss = finite_cross_entropy(rows, labels, weight, bias)
        if world > 1:
            loss = loss * (labels >= 0).sum() * world / filled.clamp(min=1)
        return self._weighted(loss)

    def _rows(self, rank: int, world: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
        """This rank's rows and labels, and the number of filled slots among all ranks'. The rows are a copy where the
        backward pass reads them, because it comes after the enqueue."""
        rows, labels = self.bank.rows, as_of_now(self.bank.labels)
        if self.sample:
            slots = as_of_now(sample_slots(labels >= 0, self._uniform(len(labels), stream=-1), self.sample))
            return as_of_now(rows[slots[rank::world]]), labels[slots[rank::world]], (labels[slots] >= 0).sum()
        rows = rows[rank::world]
        if backward_reads_features(len(rows), classes):
            rows = as_of_now(rows.clone())
        return rows, labels[rank::world], (labels >= 0).sum()


class PrototypeMemoryLoss(_MemoryLoss):
    """MBJ-W: past classifier weights, favouring rare classes, train the embedding (paper, Section 3.3, Eq. 4 and 5).

    Each call returns eta * L_memory against what was remembered before this step; then, in training with grad enabled,
    the prototype of each class enters the memory with probability P of its class. Add the result to the batch loss.

    Ranks that hold equal weights remember the same without any traffic: the draw depends on seed and step alone.

    Args:
        class_counts, beta, start, seed, ramp: as for :class:`FeatureMemoryLoss`.
        dim: Length D of a feature and of a prototype.
        size: Slots of the memory; the paper uses 3,500 for re-ID.
        eta: Weight of L_memory (Eq. 2), >= 0; 0 turns it off.
        norm: "sum" (the paper's Eq. 5: about one prototype a step) or "max" (the rarest class enters every step).
        scale: alpha of Eq. 4, > 0.
        margin: delta of Eq. 4, >= 0.
        momentum: 0 remembers the weights themselves; m > 0 is the paper's MBJ*, which remembers an average that moves
            by (1 - m) a step.
        interval: Not in the paper. Prototypes enter in every ``interval``-th call only, so that a full memory reaches
            further back and its rows differ more.
        num_classes: C, needed only where ``momentum`` > 0 and ``class_counts`` come later.
        sample: 0 or None; see :class:`FeatureMemoryLoss`. Eq. 4 has no unbiased estimate from a part of the rows.

    Raises:
        ValueError: for a value out of range.

    Example:
        >>> memory = PrototypeMemoryLoss([100, 10], dim=2, size=4, eta=3, beta=0, norm="max", scale=4.0, margin=0.5)
        >>> features, labels, weight = torch.eye(2), torch.tensor([0, 1]), torch.eye(2)
        >>> memory(features, labels, weight), memory(features, labels, weight)
        (tensor(0.), tensor(0.3808))
        >>> memory.bank.labels
        tensor([0, 1, 0, 1])
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
        sample: int | None = 0,
    ) -> None:
        super().__init__(class_counts, dim, size, eta, beta, norm, start, seed, ramp)
        if sample:
            raise ValueError(
                f"sample {sample!r}: the prototype loss takes its whole memory (sample 0), because a part of the rows "
                "gives no unbiased estimate of Eq. 4, the logarithm of a product of sums over the memory: lower size"
            )
        self.interval, self.momentum = checked("interval", interval), checked("momentum", momentum)
        self.scale, self.margin = checked("scale", scale), checked("margin", margin)
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
        loss = self._memory_loss(features, labels)
        if learning:
            keep = (self._uniform(len(probs), stream=0) < probs) & (self.step % self.interval == 0)
            self.bank.enqueue(self._prototypes(weight), torch.arange(len(probs), device=probs.device), keep)
            self.count_call()
        return loss

    def _memory_loss(self, features: Tensor, labels: Tensor) -> Tensor:
        if self.eta == 0:
            return features.new_zeros(())
        dtype = torch.promote_types(features.dtype, torch.float32)
        if self.idle():
            return no_loss(dtype, features)
        labels = as_of_now(self._hard_labels(labels, stream=1 + rank_and_world()[0]))
        with torch.autocast(features.device.type, enabled=False):
            # The normalised rows are a copy, which the backward pass needs: it comes after the enqueue.
            rows = as_of_now(F.normalize(self.bank.rows.to(dtype), dim=1))
            similarity = F.normalize(features.to(dtype), dim=1) @ rows.T
            loss = multi_prototype_loss(similarity, labels, as_of_now(self.bank.labels), self.scale, self.margin)
        return self._weighted(loss)

    def _prototypes(self, weight: Tensor) -> Tensor:
        weight = weight.detach().float()
        if not self.momentum:
            return weight
        moved = self.momentum_weight.float().lerp(weight, 1 - self.momentum)
        self.momentum_weight.copy_(torch.where(self.step == 0, weight, moved))
        return self.momentum_weight


def _check_even(rows: Tensor) -> None:
    """On a CPU, where gloo would end the process without a word, an error for ranks with different numbers of rows.

    Raises:
        ValueError: naming them.
    """
    _, world = rank_and_world()
    if world == 1 or not rows.is_cpu or torch.compiler.is_compiling():
        return
    counts = [torch.zeros(1, dtype=torch.long) for _ in range(world)]
    dist.all_gather(counts, torch.tensor([len(rows)]))
    if len({int(count) for count in counts}) > 1:
        raise ValueError(
            f"the ranks have batches of {[int(count) for count in counts]} rows, and each must have the same number: "
            "take a sampler that gives every rank as many images, and drop_last=True"
        )


def _all_gather(tensor: Tensor) -> Tensor:
    """(world * B, ...) rows of all ranks, in the order of ranks. Every rank must bring the same number of rows."""
    _, world = rank_and_world()
    if world == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world)]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)
