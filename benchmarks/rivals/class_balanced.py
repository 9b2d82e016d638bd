"""Class-balanced focal loss: classes weigh the inverse of their effective number of images."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mbj_plugin.batch_losses import focal_terms
from mbj_plugin.checks import Range, check_logits, counts_tensor


def effective_number_weights(class_counts: Tensor | Sequence[int], beta: float = 0.9999) -> Tensor:
    """w_i = (1 - beta) / (1 - beta^N_i), scaled to a mean of 1 (Cui et al., 2019, https://arxiv.org/abs/1901.05555).

    Args:
        class_counts: (C,) training images per class, N_i >= 0. A class with N = 0 gets weight 0 and counts in no mean.
        beta: in [0, 1); 0 gives equal weights, towards 1 the weights tend to 1 / N_i. Classes of many more images than
            1 / (1 - beta) weigh alike: at 0.9999 [900000, 700000, 60000] give [1.0, 1.0, 1.0], which a warning says.

    Returns:
        (C,) fp32 weights.

    Raises:
        ValueError: for a value out of range.
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta of the effective number must be in [0, 1), got {beta}")
    counts = counts_tensor(class_counts).double()
    present = counts > 0
    weights = torch.where(present, (1 - beta) / (1 - beta ** counts.clamp(min=1)), 0.0)
    weights = weights * present.sum() / weights.sum()
    if beta > 0 and counts.max() > 2 * counts[present].min() and weights.max() < 1.01 * weights[present].min():
        nearest = 1 - 1 / float(counts.max())
        sizes = f"{int(counts[present].min())} to {int(counts.max())}"
        warnings.warn(f"beta {beta} weighs classes of {sizes} images alike: try {nearest:.7f}", stacklevel=2)
    return weights.float()


class ClassBalancedFocalLoss(nn.Module):
    """mean_i -w_{y_i} (1 - p_{y_i})^gamma log p_{y_i} (Cui et al., 2019, https://arxiv.org/abs/1901.05555).

    With p the softmax, as in :class:`FocalLoss`; Cui et al. sum a sigmoid over the classes.

    Args:
        class_counts: (C,) training images per class.
        beta: of the effective number, see :func:`effective_number_weights`.
        gamma: focusing strength, >= 0.

    Raises:
        ValueError: for a value out of range.
    """

    class_weights: Tensor

    def __init__(self, class_counts: Tensor | Sequence[int], beta: float = 0.9999, gamma: float = 1.0) -> None:
        super().__init__()
        self.gamma = Range().checked("gamma", gamma)
        self.register_buffer("class_weights", effective_number_weights(class_counts, beta), persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of (B, C) logits and (B,) classes in [0, C)."""
        check_logits(logits, target)
        return (self.class_weights[target] * focal_terms(logits, target, self.gamma)).mean()

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}"
