"""Classifiers that take a trained one's place after training: no image, no gradient into the features.

Each function returns ``(weight, bias)``, (C, D) and (C,), of a linear classifier of the same features: its logits are
``features @ weight.T + bias``. Shape letters: N images, C classes, D length of a feature.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mbj_plugin.checks import RANGES, Counts, check_matrix, check_target, counts_tensor


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


def nearest_class_mean(features: Tensor, labels: Tensor, num_classes: int | None = None) -> tuple[Tensor, Tensor]:
    """The class whose mean training feature is nearest by cosine (Kang et al., 2020, https://arxiv.org/abs/1910.09217).

    Args:
        features: (N, D) features of training images.
        labels: (N,) integer class of each; negative = unlabelled, left out.
        num_classes: C; the largest label + 1 by default.

    Raises:
        ValueError: for a class without a feature.
    """
    check_matrix("features", features)
    check_target(labels, len(features), num_classes)
    features, labels = features[labels >= 0], labels[labels >= 0].long()
    counts = torch.bincount(labels, minlength=num_classes or 0)
    if not len(counts) or counts.min() == 0:
        raise ValueError(f"class {int(counts.argmin()) if len(counts) else 0} has no feature, so it has no mean")
    sums = features.new_zeros(len(counts), features.shape[1], dtype=torch.float64)
    means = sums.index_add_(0, labels, features.double()) / counts[:, None]
    return F.normalize(means, dim=1).to(features.dtype), features.new_zeros(len(counts))


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
