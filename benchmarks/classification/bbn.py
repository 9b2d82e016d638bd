"""BBN (:mod:`benchmarks.rivals.bbn`) for the ResNets of this benchmark.

A batch of the harness is both: its first half are the draws of every method, its second half :func:`reversed_draws`.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from benchmarks.rivals.bbn import BilateralBranch, reversed_probs
from mbj_plugin.longtail import count_classes
from mbj_plugin.timm.models import BasicBlock, CifarResNet


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
    counts = count_classes(labels)
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


def two_branches(model: CifarResNet) -> BilateralBranch:
    """The network of a ResNet, which it takes apart.

    New weights come from the global generator; those of the ResNet stay.
    """
    twin = copy.deepcopy(model)
    assert isinstance(twin.layer3, nn.Sequential)
    last = twin.layer3[-1]
    assert isinstance(last, BasicBlock)
    twin.layer3[-1] = new = BasicBlock(last.conv1.in_channels, last.conv1.out_channels, last.stride)
    network = BilateralBranch(model, twin)
    for module in (*new.modules(), network.fc):
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return network
