"""The equations of Memory-based Jitter, one pure function each, in the paper's order.

Paper: "Memory-based Jitter: Improving Visual Recognition on Long-tailed Data with Diversity In Memory"
(Liu, Zhang, Li, Zhang, Sun; https://arxiv.org/abs/2008.09809).

Shape letters, here and everywhere: B batch, C classes, D embedding dimension, M memory size.
A negative label marks an empty slot or an unlabelled sample. Losses are computed in fp32 or better.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mbj_plugin.checks import Counts, Range, check_logits, check_target, counts_tensor

NORMS = ("sum", "max")
# Logits beyond this many are never held at once: 2**24 in fp32 are 64 MiB (iNaturalist18's 25,000 x 8,142 are 814 MB).
CHUNK_LOGITS = 2**24
TORCH_CHUNKS = hasattr(F, "linear_cross_entropy") and hasattr(nn, "LinearCrossEntropyOptions")


def sampling_probs(class_counts: Counts, beta: float = 1.5, norm: str = "sum") -> Tensor:
    """Probability that a row of each class enters the memory, P_i = (1/N_i)^beta / sum_j (1/N_j)^beta (Eq. 1 and 5).

    Args:
        class_counts: (C,) training images per class, N_i >= 0, or a dict by class index. A class with N = 0 gets P = 0
            and counts in no sum.
        beta: Strength of the re-balancing, >= 0. The memory's own class mix is N^(1 - beta): 1.0 makes it uniform,
            above 1.0 favours the tail.
        norm: "sum" is the paper's formula; "max" divides by the largest P instead, so that every row of the rarest
            class enters.

    Returns:
        (C,) probabilities, in the dtype of ``class_counts`` where that is floating, else the default dtype.

    Raises:
        ValueError: for counts that are none, for beta < 0, for an unknown norm.

    Example:
        >>> sampling_probs([100, 25, 4], beta=1.0)
        tensor([0.0333, 0.1333, 0.8333])
        >>> sampling_probs([100, 25, 4], beta=1.0, norm="max")
        tensor([0.0400, 0.1600, 1.0000])
    """
    counts = counts_tensor(class_counts)
    dtype = counts.dtype if counts.is_floating_point() else torch.get_default_dtype()
    counts, beta = counts.double(), Range().checked("beta", beta)
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {NORMS}, got {norm!r}")
    # In logs, so that a large beta can neither overflow nor underflow; log(1/0) would be +inf, hence the mask.
    log_p = torch.where(counts > 0, -beta * counts.log(), -torch.inf)
    log_p = log_p - (log_p.logsumexp(0) if norm == "sum" else log_p.amax())
    return log_p.exp().to(dtype)


def memory_cross_entropy(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """L_memory of Eq. 2: the cross-entropy of the current classifier on memorised features.

    The gradient reaches the classifier only: "the memorized features do NOT require to be updated".

    Args:
        features: (M, D) memorised features; detached here.
        labels: (M,) integer class of each row in [0, C); negative = empty, the row is ignored whatever it holds.
        weight: (C, D) weight of the classification layer.
        bias: (C,) its bias, if it has one.

    Returns:
        Scalar, the mean over the filled rows; 0 (with a zero gradient) where none is filled.

    Example:
        >>> features, weight = torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.eye(2)
        >>> memory_cross_entropy(features, torch.tensor([0, -1]), weight)  # the second slot is empty
        tensor(0.1269)
    """
    check_target(labels, len(features), len(weight))
    filled = labels >= 0
    features = torch.where(filled[:, None], features.detach(), 0.0)
    return finite_cross_entropy(features, torch.where(filled, labels, -1).long(), weight, bias)


def finite_cross_entropy(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """:func:`memory_cross_entropy` of what a bank holds: detached, finite in empty rows too, whose label is -1."""
    dtype = loss_dtype(features, weight)
    with torch.autocast(features.device.type, enabled=False):
        total = _linear_cross_entropy_sum(
            features.to(dtype), weight.to(dtype), labels, None if bias is None else bias.to(dtype)
        )
    return total / (labels >= 0).sum().clamp(min=1)


def _linear_cross_entropy_sum(features: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None) -> Tensor:
    """Sum of cross-entropies; many logits are computed in chunks, by torch where it can (2.14 and later)."""
    rows = max(1, CHUNK_LOGITS // len(weight))
    if len(features) <= rows:
        return _cross_entropy_sum(features, weight, labels, bias)
    if TORCH_CHUNKS:
        return F.linear_cross_entropy(
            features,
            weight,
            labels,
            linear_bias=bias,
            reduction="sum",
            ignore_index=-1,
            options=nn.LinearCrossEntropyOptions(),
        )
    # Older torch: the logits of a chunk are computed again in the backward pass.
    parts = [
        checkpoint(_cross_entropy_sum, f, weight, y, bias, use_reentrant=False, preserve_rng_state=False)
        for f, y in zip(features.split(rows), labels.split(rows), strict=True)
    ]
    return torch.stack(parts).sum()


def _cross_entropy_sum(features: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None) -> Tensor:
    return F.cross_entropy(F.linear(features, weight, bias), labels, ignore_index=-1, reduction="sum")


def cosface_loss(cosine: Tensor, labels: Tensor, scale: float = 16.0, margin: float = 0.2) -> Tensor:
    """L_batch of Eq. 3 (CosFace): log(1 + sum_k exp(scale * (x w_n^k + margin - x w_p))).

    Args:
        cosine: (B, C) cosine similarities of features and prototypes, in [-1, 1].
        labels: (B,) integer class of each row in [0, C); negative = unlabelled, the row is ignored.
        scale: alpha of the paper, > 0.
        margin: delta of the paper, >= 0.

    Returns:
        Scalar, the mean over the labelled rows; 0 where none is labelled.

    Example:
        >>> cosine = torch.tensor([[0.9, 0.6]])
        >>> cosface_loss(cosine, torch.tensor([0]), margin=0.0), cosface_loss(cosine, torch.tensor([0]))
        (tensor(0.0082), tensor(0.1839))
    """
    check_logits(cosine, labels)
    labels = torch.where(labels >= 0, labels, -1).long()
    cosine = torch.where(labels[:, None] >= 0, cosine, 0.0).to(loss_dtype(cosine))
    target = torch.zeros_like(cosine).scatter_(1, labels.clamp(min=0)[:, None], 1.0)
    total = F.cross_entropy(scale * (cosine - margin * target), labels, ignore_index=-1, reduction="sum")
    return total / (labels >= 0).sum().clamp(min=1)


def multi_prototype_loss(
    similarity: Tensor, labels: Tensor, prototype_labels: Tensor, scale: float = 16.0, margin: float = 0.2
) -> Tensor:
    """L_memory of Eq. 4: log(1 + sum_n exp(scale * (x m_n + margin)) * sum_p exp(-scale * x m_p)).

    Computed as softplus(logsumexp_n + logsumexp_p), which neither overflows nor underflows. A sample without a
    positive (or without a negative) in memory has an empty sum: it contributes exactly 0, with a zero gradient.

    Args:
        similarity: (B, M) cosine similarities of features and memorised prototypes, in [-1, 1].
        labels: (B,) integer class of each sample; negative = unlabelled, the sample is ignored.
        prototype_labels: (M,) integer class of each prototype; negative = empty slot, ignored.
        scale: alpha of the paper, > 0.
        margin: delta of the paper, >= 0.

    Returns:
        Scalar, the mean over the labelled samples; 0 where none is labelled.

    Example:
        >>> similarity, labels = torch.tensor([[0.9, 0.6, 0.5]]), torch.tensor([0])
        >>> multi_prototype_loss(similarity, labels, torch.tensor([0, 1, 2]))
        tensor(0.2173)
        >>> multi_prototype_loss(similarity, labels, torch.tensor([1, 1, -1]))  # no positive in memory
        tensor(0.)
    """
    check_target(labels, len(similarity))
    labelled = labels >= 0
    similarity = torch.where(labelled[:, None], similarity, 0.0).to(loss_dtype(similarity))
    filled = (prototype_labels >= 0)[None, :]
    same = labels[:, None] == prototype_labels[None, :]
    # Of a labelled sample, the only ones that count, "same" is of a filled slot already.
    positive = _masked_logsumexp(-scale * similarity, same)
    negative = _masked_logsumexp(scale * (similarity + margin), ~same & filled)
    loss = torch.logaddexp(positive + negative, torch.zeros_like(positive))
    return torch.where(labelled, loss, 0.0).sum() / labelled.sum().clamp(min=1)


def _masked_logsumexp(values: Tensor, mask: Tensor) -> Tensor:
    # A finite stand-in for log(0): logsumexp over -inf alone has a NaN gradient.
    return torch.where(mask, values, torch.finfo(values.dtype).min).logsumexp(dim=1)


def loss_dtype(*tensors: Tensor) -> torch.dtype:
    """fp32, or better where the tensors are."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
