"""Classifiers that take a trained one's place after training: no image, no gradient into the features.

Each function returns ``(weight, bias)``, (C, D) and (C,), of a linear classifier of the same features: its logits are
``features @ weight.T + bias``. Shape letters: N images, M memory size, C classes, D length of a feature.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mbj_plugin.checks import RANGES, Counts, Range, check_matrix, check_target, counts_tensor
from mbj_plugin.functional import memory_cross_entropy

METRICS = ("cosine", "euclidean")


def logit_adjusted(
    weight: Tensor, bias: Tensor | None, class_counts: Counts, tau: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Post-hoc logit adjustment, z_c - tau log(N_c / N) (Menon et al., 2021, https://arxiv.org/abs/2007.07314).

    Args:
        weight: (C, D) weight of the trained classifier.
        bias: (C,) its bias, if it has one.
        class_counts: (C,) training images per class, each > 0.
        tau: strength, >= 0; 0 leaves the classifier as it is, 1 is the optimum for a calibrated one.

    Raises:
        ValueError: for a value out of range.
    """
    counts = _counts(weight, class_counts)
    _check_bias(weight, bias)
    log_prior = (counts / counts.sum()).log()
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    return weight.clone(), (bias.double() - RANGES["tau"].checked("tau", tau) * log_prior).to(weight.dtype)


def multiplicatively_adjusted(weight: Tensor, class_counts: Counts, gamma: float = 0.2) -> tuple[Tensor, Tensor]:
    """Multiplicative logit adjustment, (N_max / N_c)^gamma cos(w_c, x) (Kim and Kim, 2020, IEEE Access 8;
    why it works: Hasegawa and Sato, 2025, https://arxiv.org/abs/2409.17582).

    A product needs a zero to start from, and logits have none: a number added to all of them changes no softmax, but
    does change the products. So it is the cosine that is multiplied; the norms of the weights and the bias go.

    Args:
        weight: (C, D) weight of the trained classifier.
        class_counts: (C,) training images per class, each > 0.
        gamma: strength, >= 0. It is an exponent of the count itself: 1 is far more than :func:`logit_adjusted`'s 1.

    Raises:
        ValueError: for a value out of range.
    """
    counts = _counts(weight, class_counts)
    factor = (counts.max() / counts) ** RANGES["gamma"].checked("gamma", gamma)
    adjusted = F.normalize(weight.double(), dim=1) * factor[:, None]
    return adjusted.to(weight.dtype), weight.new_zeros(len(weight))


def tau_normalized(weight: Tensor, tau: float = 1.0) -> tuple[Tensor, Tensor]:
    """tau-normalisation, w_c / |w_c|^tau without a bias (Kang et al., 2020, https://arxiv.org/abs/1910.09217).

    Args:
        weight: (C, D) weight of the trained classifier.
        tau: strength, >= 0; 0 leaves the weights as they are, 1 makes all of one length.

    Raises:
        ValueError: for a tau out of range.
    """
    check_matrix("weight", weight)
    tau = RANGES["tau"].checked("tau", tau)
    norms = weight.double().norm(dim=1, keepdim=True).clamp(min=1e-12)
    return (weight.double() / norms**tau).to(weight.dtype), weight.new_zeros(len(weight))


def nearest_class_mean(
    features: Tensor, labels: Tensor, num_classes: int | None = None, metric: str = "cosine"
) -> tuple[Tensor, Tensor]:
    """The class whose mean training feature is nearest (Kang et al., 2020, https://arxiv.org/abs/1910.09217).

    Args:
        features: (N, D) features of training images.
        labels: (N,) integer class of each; negative = unlabelled, left out.
        num_classes: C; the largest label + 1 by default.
        metric: "cosine", argmax_c cos(x, m_c), or "euclidean", argmin_c |x - m_c|.

    Raises:
        ValueError: for a class without a feature, or an unknown metric.
    """
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {METRICS}, got {metric!r}")
    check_matrix("features", features)
    check_target(labels, len(features), num_classes)
    features, labels = features[labels >= 0], labels[labels >= 0].long()
    counts = torch.bincount(labels, minlength=num_classes or 0)
    if not len(counts) or counts.min() == 0:
        raise ValueError(f"class {int(counts.argmin()) if len(counts) else 0} has no feature, so it has no mean")
    sums = features.new_zeros(len(counts), features.shape[1], dtype=torch.float64)
    means = sums.index_add_(0, labels, features.double()) / counts[:, None]
    if metric == "cosine":
        return F.normalize(means, dim=1).to(features.dtype), features.new_zeros(len(counts))
    # |x - m|^2 = |x|^2 - 2 (x m - |m|^2 / 2), and |x|^2 is the same for all classes.
    return means.to(features.dtype), (-0.5 * means.square().sum(1)).to(features.dtype)


def retrained(
    features: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    weight_decay: float = 5e-4,
    steps: int = 200,
) -> tuple[Tensor, Tensor]:
    """A classifier trained anew on what a feature memory holds: Eq. 2's L_memory alone, on a memory that stands still.

    The minimum of ``memory_cross_entropy + weight_decay / 2 |W - W_0|^2``, W_0 the trained weight. Decay towards W_0
    and not towards zero, so that a class of which the memory has little stays where training put it. The memory's own
    mix of classes, N^(1 - beta), is the prior of the result.

    Args:
        features: (M, D) remembered features.
        labels: (M,) integer class of each; negative = empty slot.
        weight: (C, D) weight of the trained classifier, where the search starts.
        bias: (C,) its bias, if it has one.
        weight_decay: > 0; the loss is convex, so that this alone decides on the result.
        steps: of L-BFGS, at most.

    Raises:
        ValueError: for a value out of range, or a memory that is empty.
    """
    Range(above=True).checked("weight_decay", weight_decay)
    check_matrix("weight", weight)
    check_matrix("features", features, weight.shape[1])
    _check_bias(weight, bias)
    if not (labels >= 0).any():
        raise ValueError("the memory is empty: there is nothing to train on")
    anchor = weight.detach().double()
    new_weight = anchor.clone().requires_grad_()
    new_bias = (weight.new_zeros(len(weight)) if bias is None else bias.detach()).double().clone().requires_grad_()
    optimizer = torch.optim.LBFGS([new_weight, new_bias], max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = memory_cross_entropy(features.double(), labels, new_weight, new_bias)
        value = value + weight_decay / 2 * (new_weight - anchor).square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return new_weight.detach().to(weight.dtype), new_bias.detach().to(weight.dtype)


def _check_bias(weight: Tensor, bias: Tensor | None) -> None:
    if bias is not None and not (isinstance(bias, Tensor) and bias.shape == weight.shape[:1]):
        raise ValueError(f"the bias must be a tensor of shape ({len(weight)},), got {bias!r}")


def _counts(weight: Tensor, class_counts: Counts) -> Tensor:
    check_matrix("weight", weight)
    counts = counts_tensor(class_counts).double().to(weight.device)
    if counts.shape != weight.shape[:1]:
        raise ValueError(f"class_counts must be ({len(weight)},) like the classifier, got {tuple(counts.shape)}")
    if (counts <= 0).any():
        raise ValueError(
            f"every class needs a training image, but class {int(counts.argmin())} has none: "
            "leave classes without images out of the class counts and the model"
        )
    return counts
