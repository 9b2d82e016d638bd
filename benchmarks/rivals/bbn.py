"""BBN (Zhou et al., CVPR 2020, https://arxiv.org/abs/1912.02413): two branches, two samplers, one classifier.

All of the network is shared but its last block. The conventional branch sees batches as they come, the re-balancing
branch batches of a reversed sampler; their features are weighed by alpha = 1 - (T / T_max)^2 and 1 - alpha, and one
linear layer on both gives the logits. The loss weighs the labels of the two batches alike. In the test both branches
see the image, and alpha is 1/2.

Where the authors' code says more than the paper, it is followed: the weighed features are doubled, which leaves them as
they are in the test; T is the number of finished epochs; the branches run one after the other, so that batch
normalisation sees each batch alone. T_max is the run's number of epochs, as the paper has it; the code takes 100 and
200 for its runs of 90 and 180.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from mbj_plugin.timm.models import BasicBlock, CifarResNet


def cumulative_alpha(epoch: int, epochs: int) -> float:
    """alpha = 1 - (T / T_max)^2: from 1, the conventional branch, to almost 0, the re-balancing one.

    Args:
        epoch: T, finished epochs, from 0 to ``epochs`` - 1.
        epochs: T_max, of the whole run.

    Example:
        >>> [cumulative_alpha(epoch, 4) for epoch in range(4)]
        [1.0, 0.9375, 0.75, 0.4375]
    """
    return 1 - (epoch / epochs) ** 2


def reversed_probs(counts: ArrayLike) -> np.ndarray:
    """(C,) probability of each class, P_i = w_i / sum_j w_j with w_i = N_max / N_i.

    Args:
        counts: (C,) training images per class.

    Raises:
        ValueError: for a class without an image.

    Example:
        >>> reversed_probs([6, 3, 2])
        array([0.16666667, 0.33333333, 0.5       ])
    """
    counts = np.asarray(counts, dtype=float)
    if (counts <= 0).any():
        raise ValueError(f"class {int(counts.argmin())} has no image that a reversed sampler could draw")
    weights = counts.max() / counts
    return weights / weights.sum()


class BilateralBranch(nn.Module):
    """A CIFAR ResNet whose last block there is twice, with one classifier on the features of both.

    New weights come from the global generator; those of the ResNet stay.

    Args:
        model: is taken apart: it becomes what is shared, its last block the conventional branch.

    Attributes:
        alpha: 0-dim, weight of the conventional branch in training; set it before each epoch.
    """

    alpha: Tensor

    def __init__(self, model: CifarResNet) -> None:
        super().__init__()
        assert isinstance(model.layer3, nn.Sequential)
        last = model.layer3[-1]
        assert isinstance(last, BasicBlock)
        new = BasicBlock(last.conv1.in_channels, last.conv1.out_channels, last.stride)
        self.fc = nn.Linear(2 * model.num_features, model.num_classes)
        for module in (*new.modules(), self.fc):
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
        model.layer3 = model.layer3[:-1]
        model.reset_classifier(0)
        self.model, self.branches = model, nn.ModuleList([last, new])
        self.register_buffer("alpha", torch.ones(()), persistent=False)  # of the epoch

    def mixed(self, images: Tensor, reversed_images: Tensor, alpha: float | Tensor) -> Tensor:
        """(B, C) logits 2 W [alpha f_c; (1 - alpha) f_r] + b.

        Args:
            images: (B, ...) of the conventional branch.
            reversed_images: (B, ...) of the re-balancing branch.
            alpha: weight of the conventional branch; a 0-dim tensor inside a CUDA graph.
        """
        conventional, rebalancing = self._features(images, 0), self._features(reversed_images, 1)
        with torch.autocast(conventional.device.type, enabled=False):
            both = [alpha * conventional.float(), (1 - alpha) * rebalancing.float()]
            return self.fc(2 * torch.cat(both, dim=1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C) logits. In training the images are 2B, those of the re-balancing branch behind the others; in the test
        both branches see the B images, and alpha is 1/2."""
        if self.training:
            images, reversed_images = images.chunk(2)
            return self.mixed(images, reversed_images, self.alpha)
        return self.mixed(images, images, 0.5)

    def _features(self, images: Tensor, branch: int) -> Tensor:
        shared = self.model.forward_features(images)
        return self.model.forward_head(self.branches[branch](shared), pre_logits=True)


class BilateralLoss(nn.Module):
    """:func:`bbn_loss` with the alpha of a model, called as any criterion, on the (2B,) labels of both branches.

    Args:
        model: on its device.
    """

    alpha: Tensor

    def __init__(self, model: BilateralBranch) -> None:
        super().__init__()
        self.register_buffer("alpha", model.alpha, persistent=False)  # one tensor for both

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Set alpha, the model's too; arguments as of :func:`cumulative_alpha`."""
        self.alpha.fill_(cumulative_alpha(epoch, epochs))

    def forward(self, output: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of (B, C) logits of a model in training."""
        labels, reversed_labels = labels.chunk(2)
        return bbn_loss(output, labels, reversed_labels, self.alpha)


def bbn_loss(logits: Tensor, labels: Tensor, reversed_labels: Tensor, alpha: float | Tensor) -> Tensor:
    """alpha E(z, y_c) + (1 - alpha) E(z, y_r), E the cross-entropy.

    Args:
        logits: (B, C) of :meth:`BilateralBranch.mixed`.
        labels: (B,) of the conventional batch.
        reversed_labels: (B,) of the reversed batch.
        alpha: as there.
    """
    return alpha * F.cross_entropy(logits, labels) + (1 - alpha) * F.cross_entropy(logits, reversed_labels)
