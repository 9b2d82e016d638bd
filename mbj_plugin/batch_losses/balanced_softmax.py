"""Balanced softmax, or logit adjustment: the classifier is trained under the prior of the training set."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mbj_plugin.batch_losses.checks import at_least_0, check_hard_labels
from mbj_plugin.functional import checked_counts


class BalancedSoftmaxLoss(nn.Module):
    """mean_i -log( N_y^tau e^{z_y} / sum_c N_c^tau e^{z_c} ): cross-entropy of logits + tau log N.

    Balanced softmax (Ren et al., 2020, https://arxiv.org/abs/2007.10740) is tau = 1; with a free tau it is the
    logit-adjusted loss (Menon et al., 2021, https://arxiv.org/abs/2007.07314). A test under equal classes uses the
    logits themselves, without the prior.

    Args:
        class_counts: (C,) training images per class. A class with N = 0 has probability 0: it must be no target.
        tau: strength of the adjustment, >= 0; 0 is cross-entropy.

    Raises:
        ValueError: for a value out of range.
    """

    log_prior: Tensor

    def __init__(self, class_counts: Tensor | Sequence[int], tau: float = 1.0) -> None:
        super().__init__()
        self.tau = at_least_0("tau", tau)
        counts = checked_counts(class_counts)
        self.register_buffer("log_prior", (counts / counts.sum()).log().float(), persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of (B, C) logits and (B,) classes in [0, C)."""
        check_hard_labels(logits, target)
        if self.tau == 0:  # 0 * -inf would be NaN where a class has no image
            return F.cross_entropy(logits, target)
        return F.cross_entropy(logits.float() + self.tau * self.log_prior, target)

    def extra_repr(self) -> str:
        return f"tau={self.tau}"
