"""Focal loss: easy images count less."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mbj_plugin.batch_losses.checks import at_least_0, check_hard_labels


def focal_terms(logits: Tensor, target: Tensor, gamma: float) -> Tensor:
    """(B,) terms -(1 - p_y)^gamma log p_y, with p the softmax of (B, C) logits."""
    log_p = -F.cross_entropy(logits.float(), target, reduction="none")
    # 1 - p by expm1: where p is close to 1, the difference would have no digits left. The clamp keeps the gradient of
    # the power finite at p = 1 for gamma < 1.
    return -((-torch.expm1(log_p)).clamp(min=1e-12) ** gamma) * log_p


class FocalLoss(nn.Module):
    """mean_i -(1 - p_{y_i})^gamma log p_{y_i} (Lin et al., 2017, https://arxiv.org/abs/1708.02002, Eq. 4).

    With p the softmax, the multi-class reading that the long-tailed field compares with; detection uses a sigmoid per
    class. gamma = 1 is what LDAM's authors compare with on CIFAR; detection takes 2.

    Args:
        gamma: focusing strength, >= 0; 0 is cross-entropy.

    Raises:
        ValueError: for gamma < 0.
    """

    def __init__(self, gamma: float = 1.0) -> None:
        super().__init__()
        self.gamma = at_least_0("gamma", gamma)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of (B, C) logits and (B,) classes in [0, C)."""
        check_hard_labels(logits, target)
        return focal_terms(logits, target, self.gamma).mean()

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}"
