"""BBN (Zhou et al., CVPR 2020, https://arxiv.org/abs/1912.02413) for the ResNets of this benchmark.

All blocks are shared but the last. The conventional branch sees batches as they come, the re-balancing branch batches
of a reversed sampler; their features are weighed by alpha = 1 - (T / T_max)^2 and 1 - alpha, and one linear layer on
both gives the logits. The loss weighs the labels of the two batches alike. In the test both branches see the image, and
alpha is 1/2.

Where the authors' code says more than the paper, it is followed: the weighed features are doubled, which leaves them as
they are in the test; T is the number of finished epochs; the branches run one after the other, so that batch
normalisation sees each batch alone.

A batch of the harness is both: its first half are the draws of every method, its second half :func:`reversed_draws`.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from mbj_plugin.longtail import class_counts
from mbj_plugin.timm.models import BasicBlock, CifarResNet


def cumulative_alpha(epoch: int, epochs: int) -> float:
    """alpha = 1 - (T / T_max)^2: from 1, the conventional branch, to almost 0, the re-balancing one.

    Args:
        epoch: T, finished epochs, from 0 to ``epochs`` - 1.
        epochs: T_max, of the whole run.
    """
    assert 0 <= epoch < epochs
    return 1 - (epoch / epochs) ** 2


def reversed_probs(counts: ArrayLike) -> np.ndarray:
    """(C,) probability of each class, P_i = w_i / sum_j w_j with w_i = N_max / N_i.

    Args:
        counts: (C,) training images per class.

    Raises:
        ValueError: for a class without an image.
    """
    counts = np.asarray(counts, dtype=float)
    if (counts <= 0).any():
        raise ValueError(f"class {int(counts.argmin())} has no image that a reversed sampler could draw")
    weights = counts.max() / counts
    return weights / weights.sum()


def reversed_draws(labels: ArrayLike, steps: int, batch_size: int, padding: int, seed: int, epoch: int) -> Tensor:
    """(steps, B, 4) int64 as of :func:`recipe.epoch_draws`: a class by :func:`reversed_probs`, then any image of it.

    Args:
        labels: (N,) class of each training image.
        steps: of an epoch.
        batch_size: B.
        padding: of the crops.
        seed: of the run; these draws are independent of those of the other branch.
        epoch: of the draws.
    """
    labels = np.asarray(labels)
    counts = class_counts(labels)
    rng = np.random.default_rng((seed, epoch, 1))
    rows = steps * batch_size
    classes = rng.choice(len(counts), rows, p=reversed_probs(counts))
    # Images by class, one class after the other: an image of a class is a place behind the class's first.
    by_class, first = np.argsort(labels, kind="stable"), np.cumsum(counts) - counts
    draws = np.empty((rows, 4), dtype=np.int64)
    draws[:, 0] = by_class[first[classes] + rng.integers(0, counts[classes])]
    draws[:, 1:3] = rng.integers(0, 2 * padding + 1, (rows, 2))
    draws[:, 3] = rng.integers(0, 2, rows)
    return torch.from_numpy(draws).view(steps, batch_size, 4)


class BilateralBranch(nn.Module):
    """A CIFAR ResNet whose last block there is twice.

    New weights come from the global generator; those of the ResNet stay.

    Args:
        model: becomes the shared blocks and the conventional branch; its classifier is not used.

    Attributes:
        alpha: 0-dim, weight of the conventional branch in training; set it before each epoch.
    """

    alpha: Tensor

    def __init__(self, model: CifarResNet) -> None:
        super().__init__()
        *shared, last = model.layer3.children()
        assert isinstance(last, BasicBlock)
        self.num_classes, self.num_features = model.num_classes, model.num_features
        self.shared = nn.Sequential(model.conv1, model.bn1, nn.ReLU(), model.layer1, model.layer2, *shared)
        self.conventional = last
        self.rebalancing = BasicBlock(last.conv1.in_channels, last.conv1.out_channels, last.stride)
        self.fc = nn.Linear(2 * model.num_features, model.num_classes)
        for module in (*self.rebalancing.modules(), self.fc):
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
        self.register_buffer("alpha", torch.ones(()), persistent=False)  # of the epoch

    def mixed(self, images: Tensor, reversed_images: Tensor, alpha: float | Tensor) -> Tensor:
        """(B, C) logits 2 W [alpha f_c; (1 - alpha) f_r] + b.

        Args:
            images: (B, 3, H, W) of the conventional branch.
            reversed_images: (B, 3, H, W) of the re-balancing branch.
            alpha: weight of the conventional branch; a 0-dim tensor inside a CUDA graph.
        """
        conventional = self.conventional(self.shared(images)).mean((2, 3))
        rebalancing = self.rebalancing(self.shared(reversed_images)).mean((2, 3))
        return self.fc(2 * torch.cat([alpha * conventional, (1 - alpha) * rebalancing], dim=1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C) logits. In training the images are 2B, those of the re-balancing branch behind the others; in the test
        both branches see (B, 3, H, W) images, and alpha is 1/2."""
        if self.training:
            images, reversed_images = images.chunk(2)
            return self.mixed(images, reversed_images, self.alpha)
        shared = self.shared(images)
        branches = [branch(shared).mean((2, 3)) for branch in (self.conventional, self.rebalancing)]
        return self.fc(torch.cat(branches, dim=1))


class BilateralLoss(nn.Module):
    """:func:`bbn_loss` with the alpha of a model, called as any criterion, on the (2B,) labels of both branches."""

    alpha: Tensor

    def __init__(self, model: BilateralBranch) -> None:
        super().__init__()
        self.register_buffer("alpha", model.alpha, persistent=False)  # one tensor for both

    def forward(self, output: Tensor, labels: Tensor) -> Tensor:
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
