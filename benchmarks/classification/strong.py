"""The strong recipe: AutoAugment (torchvision's, the policy for CIFAR-10) with Cutout, or timm's Mixup, seeded by run
and epoch.

With Mixup the losses see class probabilities. A row enters a memory with probability sum_c t_c P_c, under a class that
is drawn in proportion to t_c P_c, as in the plugin.
"""

from __future__ import annotations

import threading

import numpy as np
import torch
from PIL import Image
from timm.data.mixup import mixup_target
from torch import Tensor
from torchvision.transforms import AutoAugment, AutoAugmentPolicy

# torch's one generator: cells in threads take turns.
_GLOBAL_GENERATOR = threading.Lock()


GREY = [128, 128, 128]


def augmented(images: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """(N, H, W, 3) uint8 images after AutoAugment (https://arxiv.org/abs/1805.09501), each with a black square of half
    its side, as Cutout has it; what moves in from outside is grey. So do the codes for long-tailed CIFAR.

    Args:
        images: (N, H, W, 3) uint8, cropped and flipped.
        seed: of the run.
        epoch: of the draws.
    """
    height, width = images.shape[1:3]
    policy = AutoAugment(AutoAugmentPolicy.CIFAR10, fill=GREY)
    with _GLOBAL_GENERATOR, torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence((seed, epoch, 2)).generate_state(1)[0]))
        result = np.stack([np.asarray(policy(Image.fromarray(image))) for image in images])
    centers = np.random.default_rng((seed, epoch, 2)).integers(0, (height, width), (len(images), 2))
    for image, (y, x) in zip(result, centers, strict=True):
        image[max(y - height // 4, 0) : y + height // 4, max(x - width // 4, 0) : x + width // 4] = 0
    return result


def mixing_weights(steps: int, alpha: float, seed: int, epoch: int) -> Tensor:
    """(S,) weights of Mixup's first image, Beta(alpha, alpha), one for each batch of an epoch."""
    return torch.from_numpy(np.random.default_rng((seed, epoch, 3)).beta(alpha, alpha, steps)).float()


def mixed(images: Tensor, weight: Tensor) -> Tensor:
    """(B, 3, H, W) images, each mixed with the one at its place from the end, as timm does."""
    return images * weight + images.flip(0) * (1 - weight)


def mixed_labels(labels: Tensor, weight: Tensor, num_classes: int) -> Tensor:
    """(B, C) class probabilities of :func:`mixed` images, of their (B,) labels."""
    return mixup_target(labels, num_classes, weight)
