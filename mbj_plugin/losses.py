"""Memory-based Jitter as two losses: a bank, the class-balanced draw of Eq. 1, and the loss on what was drawn.

MBJ-F of the paper is :class:`FeatureMemoryLoss`, MBJ-W is :class:`PrototypeMemoryLoss`, MBJ-WF is both side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mbj_plugin.checks import MOST_CLASSES, RANGES, Counts, Range, check_matrix, check_target, counts_tensor
from mbj_plugin.functional import finite_cross_entropy, loss_dtype, multi_prototype_loss, sampling_probs
from mbj_plugin.memory import MemoryBank, snapshot
from mbj_plugin.sampling import DrawnModule, all_gather, check_even, hard_labels, rank_and_world, sample_slots


class _BankLoss(DrawnModule):
    """What both losses share: the bank, the probabilities of Eq. 1, and eta."""

    probs: Tensor | None
    class_counts: Tensor | None

    def __init__(
        self,
        class_counts: Counts | None,
        dim: int,
        size: int,
        eta: float,
        beta: float,
        norm: str,
        start: int,
        seed: int,
    ) -> None:
        super().__init__(start, seed)
        self.eta, self.beta = RANGES["eta"].checked("eta", eta), RANGES["beta"].checked("beta", beta)
        self.norm = norm
        sampling_probs([1], self.beta, norm)  # refuses a norm that is none, where the counts come later
        self.bank = MemoryBank(size, dim)
        # Whoever resumes has the data. The counts are saved, to refuse the memory of other data.
        self.register_buffer("probs", None, persistent=False)
        self.register_buffer("class_counts", None)
        if class_counts is not None:
            self.set_class_counts(class_counts)

    def set_class_counts(self, class_counts: Counts) -> None:
        """Set the (C,) training images per class, where they were not known at construction."""
        device = self.bank.cursor.device
        self.probs = sampling_probs(class_counts, self.beta, self.norm).float().to(device)
        self.class_counts = counts_tensor(class_counts).long().to(device)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved, own = state_dict.get(f"{prefix}class_counts"), self.class_counts
        if saved is not None and own is None:
            del state_dict[f"{prefix}class_counts"]  # they come with the data
        elif saved is not None and own is not None and saved.tolist() != own.tolist():
            raise ValueError(
                f"the saved memory is of {len(saved)} classes of {saved.tolist()[:9]} images, this run has {len(own)} "
                f"of {own.tolist()[:9]}: resume on the same data, or start without the memory"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _class_probs(self, features: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
        if self.probs is None:
            raise ValueError("the class counts are not known: give class_counts, or call set_class_counts(counts)")
        check_matrix("features", features, self.bank.dim)
        check_matrix("weight", weight, self.bank.dim)
        if len(weight) != len(self.probs):
            raise ValueError(
                f"the weight has {len(weight)} classes, the class counts {len(self.probs)}: they must agree"
            )
        check_target(labels, len(features), len(weight), soft=True)
        return self.probs

    def _eta_times(self, loss: Callable[[], Tensor], *leaves: Tensor) -> Tensor:
        """eta * loss, which is not computed where eta is 0 and before the start. Where the host does not count, the
        device holds it at 0 until then."""
        if self.eta == 0:
            return leaves[0].new_zeros(())
        counts = self.host_counts()
        if counts and not self.started:
            return _NoLoss.apply(loss_dtype(*leaves), *leaves)
        value = loss()
        return self.eta * (value if counts else torch.where(snapshot(self.step) >= self.start, value, 0.0))

    def _learning(self) -> bool:
        # Teachers and batch-norm recalibration run in train mode under no_grad: nothing of theirs is remembered.
        return self.training and torch.is_grad_enabled()

    def _hard_labels(self, labels: Tensor, stream: int) -> Tensor:
        return hard_labels(labels, self.uniform(len(labels), stream)) if labels.ndim == 2 else labels.long()


class FeatureMemoryLoss(_BankLoss):
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
        class_counts: Counts | None,
        dim: int,
        size: int = 500,
        eta: float = 15.0,
        beta: float = 1.5,
        norm: str = "sum",
        start: int = 0,
        *,
        seed: int = 0,
        sample: int | None = 0,
    ) -> None:
        super().__init__(class_counts, dim, size, eta, beta, norm, start, seed)
        self.sample = RANGES["sample"].checked("sample", sample or 0)
        if self.sample > size:
            raise ValueError(f"sample must be at most the memory's {size} rows, got {sample}")

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
        probs, learning = self._class_probs(features, labels, weight), self._learning()
        if bias is not None and not (isinstance(bias, Tensor) and bias.shape == weight.shape[:1]):
            raise ValueError(f"the bias must be a tensor of shape ({len(weight)},), got {bias!r}")
        rank, world = rank_and_world() if learning else (0, 1)
        leaves = (weight,) if bias is None else (weight, bias)
        loss = self._eta_times(lambda: self._memory_loss(weight, bias, rank, world), *leaves)
        if learning:
            # Gathered first, drawn after: the same draw on every rank.
            check_even(features)
            features = features.detach() if features.requires_grad else features
            features, labels = all_gather(features.float()), all_gather(labels)
            labels = self._hard_labels(labels, stream=1)
            keep = self.uniform(len(labels), stream=0) < probs[labels.clamp(min=0)]
            self.bank.enqueue(features, labels, keep)
            self.count_call()
        return loss

    def _memory_loss(self, weight: Tensor, bias: Tensor | None, rank: int, world: int) -> Tensor:
        # Labels and rows are copies: the backward pass comes after the enqueue.
        rows, labels = self.bank.rows, snapshot(self.bank.labels.clone())
        if self.sample:
            slots = snapshot(sample_slots(labels >= 0, self.uniform(len(labels), stream=-1), self.sample))
            rows, labels = rows[slots], labels[slots]
        of_all = labels
        if world > 1:
            rows, labels = rows[rank::world], labels[rank::world]
        loss = finite_cross_entropy(snapshot(rows.clone()), labels, weight, bias)
        if world > 1:
            loss = loss * (labels >= 0).sum() * world / (of_all >= 0).sum().clamp(min=1)
        return loss


class PrototypeMemoryLoss(_BankLoss):
    """MBJ-W: past classifier weights, favouring rare classes, train the embedding (paper, Section 3.3, Eq. 4 and 5).

    Each call returns eta * L_memory against what was remembered before this step; then, in training with grad enabled,
    the prototype of each class enters the memory with probability P of its class. Add the result to the batch loss.

    Ranks that hold equal weights remember the same without any traffic: the draw depends on seed and step alone. There
    is no ``sample``: Eq. 4, the logarithm of a product of sums, has no unbiased estimate from a part of the memory.

    Args:
        class_counts, beta, start, seed: as for :class:`FeatureMemoryLoss`.
        dim: Length D of a feature and of a prototype.
        size: Slots of the memory; the paper uses 3,500 for re-ID.
        eta: Weight of L_memory (Eq. 2), >= 0; 0 turns it off.
        norm: "sum" (the paper's Eq. 5: about one prototype a step) or "max" (the rarest class enters every step).
        scale: alpha of Eq. 4, > 0.
        margin: delta of Eq. 4, >= 0.
        momentum: 0 remembers the weights themselves; m > 0 is the paper's MBJ*, which remembers an average that moves
            by (1 - m) a step.
        num_classes: C, needed only where ``momentum`` > 0 and ``class_counts`` come later.

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

    momentum: float
    scale: float
    margin: float
    momentum_weight: Tensor

    def __init__(
        self,
        class_counts: Counts | None,
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
        num_classes: int | None = None,
    ) -> None:
        super().__init__(class_counts, dim, size, eta, beta, norm, start, seed)
        for name, value in (("momentum", momentum), ("scale", scale), ("margin", margin)):
            setattr(self, name, RANGES[name].checked(name, value))
        if self.momentum:
            num_classes = len(self.class_counts) if self.class_counts is not None else num_classes
            if num_classes is None:
                raise ValueError("momentum > 0 needs the number of classes: give class_counts or num_classes")
            num_classes = Range(1, MOST_CLASSES, whole=True).checked("num_classes", num_classes)
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
        probs, learning = self._class_probs(features, labels, weight), self._learning()
        loss = self._eta_times(lambda: self._memory_loss(features, labels), features)
        if learning:
            keep = self.uniform(len(probs), stream=0) < probs
            self.bank.enqueue(self._prototypes(weight), torch.arange(len(probs), device=probs.device), keep)
            self.count_call()
        return loss

    def _memory_loss(self, features: Tensor, labels: Tensor) -> Tensor:
        dtype = loss_dtype(features)
        labels = snapshot(self._hard_labels(labels, stream=1 + rank_and_world()[0]))
        with torch.autocast(features.device.type, enabled=False):
            # The normalised rows are a copy, which the backward pass needs: it comes after the enqueue.
            rows = snapshot(F.normalize(self.bank.rows.to(dtype), dim=1))
            similarity = F.normalize(features.to(dtype), dim=1) @ rows.T
            return multi_prototype_loss(similarity, labels, snapshot(self.bank.labels), self.scale, self.margin)

    def _prototypes(self, weight: Tensor) -> Tensor:
        weight = weight.detach().float()
        if not self.momentum:
            return weight
        moved = self.momentum_weight.float().lerp(weight, 1 - self.momentum)
        self.momentum_weight.copy_(torch.where(self.step == 0, weight, moved))
        return self.momentum_weight


class _NoLoss(torch.autograd.Function):
    """0 in the graph of the given tensors: ``backward`` and DDP find them in use, but no gradient is made for them."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> Tensor:
        ctx.inputs = len(tensors)
        return tensors[0].new_zeros((), dtype=dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:
        return (None,) * (1 + ctx.inputs)
