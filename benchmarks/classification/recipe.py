"""Model, criterion, optimizer, schedule and augmentation of a cell, from timm's own factories and our own losses."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn

from benchmarks.classification.settings import SYSTEMS, Method, Protocol
from benchmarks.rivals import create_loss
from benchmarks.rivals.bbn import BilateralBranch, BilateralLoss
from benchmarks.rivals.iem import EpisodicLoss, EpisodicMemory
from benchmarks.rivals.ldam import LDAMLoss
from mbj_plugin.longtail import count_classes
from mbj_plugin.settings import MBJSettings
from mbj_plugin.timm.criterion import MBJLoss
from mbj_plugin.timm.models import CifarResNet  # registers resnet32_cifar

# Mean and standard deviation per channel of the whole training sets.
STATISTICS = {
    10: ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    100: ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
# Initialisation draws from torch's one global generator: cells in threads take turns.
_GLOBAL_GENERATOR = threading.Lock()


def build_model(protocol: Protocol, method: Method, num_classes: int, seed: int) -> nn.Module:
    """The ResNet of the protocol; same seed, same weights, whatever the method (but for LDAM's cosine classifier)."""
    with _GLOBAL_GENERATOR:
        torch.manual_seed(seed)
        model = timm.create_model("resnet32_cifar", depth=protocol.depth, width=protocol.width, num_classes=num_classes)
        if method.loss in SYSTEMS:
            assert isinstance(model, CifarResNet)
            model = BilateralBranch(model) if method.loss == "bbn" else EpisodicMemory(model)
        elif method.loss == "ldam_drw":
            LDAMLoss.adapt_model(model)
    return model.to(memory_format=torch.channels_last)


def build_criterion(
    protocol: Protocol, method: Method, class_counts: Sequence[int], model: nn.Module, steps_per_epoch: int, seed: int
) -> nn.Module:
    """The batch loss, with the memory loss beside it where the method has one. The model is on its device already."""
    if isinstance(model, BilateralBranch):
        return BilateralLoss(model)
    if isinstance(model, EpisodicMemory):
        return EpisodicLoss(model)
    start = method.start_epoch(protocol) * steps_per_epoch
    device = next(model.parameters()).device
    base = create_loss(method.loss, class_counts, start=start).to(device)
    if method.memory is None:
        return base
    settings = method.memory_settings(protocol, steps_per_epoch)
    settings |= {name: getattr(method, name) for name in ("memory", "classifier", "classifier_loss")}
    settings.pop("start")
    return MBJLoss(class_counts, base, MBJSettings(seed=seed, **settings), start=start).bind(model)


def build_optimizer(protocol: Protocol, model: nn.Module, steps_per_epoch: int) -> tuple[torch.optim.Optimizer, Any]:
    """SGD with momentum and weight decay on every parameter; linear warm-up per step, then decays at the milestones."""
    optimizer = create_optimizer_v2(
        model,
        opt="momentum",
        lr=protocol.lr,
        momentum=protocol.momentum,
        weight_decay=protocol.weight_decay,
        filter_bias_and_bn=False,
    )
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="multistep",
        num_epochs=protocol.epochs,
        decay_milestones=list(protocol.milestones),
        decay_rate=protocol.decay_rate,
        warmup_epochs=protocol.warmup_epochs,
        warmup_lr=0.0,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    return optimizer, scheduler


def epoch_draws(num_images: int, batch_size: int, padding: int, seed: int, epoch: int) -> Tensor:
    """(steps, B, 4) int64: image, top and left of the crop, flip or not, for every row of an epoch.

    They depend on the seed and the epoch alone: every method sees the same images, and a resumed run goes on with the
    same. The incomplete last batch is left out, as in timm's loader.
    """
    rng = np.random.default_rng((seed, epoch))
    rows = rng.permutation(num_images)[: num_images // batch_size * batch_size]
    return _cropped(rows, batch_size, padding, rng)


def class_draws(
    labels: np.ndarray, probs: np.ndarray, steps: int, batch_size: int, padding: int, key: tuple[int, ...]
) -> Tensor:
    """(steps, B, 4) int64 as of :func:`epoch_draws`: a class by its probability, then any image of it.

    Args:
        labels: (N,) class of each training image.
        probs: (C,) of the classes.
        steps: of an epoch.
        batch_size: B.
        padding: of the crops.
        key: of the draws: seed, epoch and what they are for.
    """
    counts, rng = count_classes(labels), np.random.default_rng(key)
    classes = rng.choice(len(counts), steps * batch_size, p=probs)
    # Images by class, one class after the other: an image of a class is a place behind the class's first.
    by_class, first = np.argsort(labels, kind="stable"), np.cumsum(counts) - counts
    return _cropped(by_class[first[classes] + rng.integers(0, counts[classes])], batch_size, padding, rng)


def _cropped(rows: np.ndarray, batch_size: int, padding: int, rng: np.random.Generator) -> Tensor:
    draws = np.empty((len(rows), 4), dtype=np.int64)
    draws[:, 0] = rows
    draws[:, 1:3] = rng.integers(0, 2 * padding + 1, (len(draws), 2))
    draws[:, 3] = rng.integers(0, 2, len(draws))
    return torch.from_numpy(draws).view(-1, batch_size, 4)


def pad_images(images: Tensor, padding: int) -> Tensor:
    """(N, H + 2p, W + 2p, 3) images with a black border, of (N, H, W, 3) ones."""
    return nn.functional.pad(images, (0, 0, padding, padding, padding, padding))


def crop_and_flip(padded: Tensor, draw: Tensor, padding: int) -> Tensor:
    """(B, H, W, 3) uint8 crops of (N, H + 2p, W + 2p, 3) padded images, flipped where the (B, 4) draw says so.

    One gather with shapes that depend on nothing: it runs on the device of the images, also inside a CUDA graph.
    """
    index, top, left, flip = draw.unbind(1)
    size = padded.shape[1] - 2 * padding
    steps = torch.arange(size, device=padded.device)
    rows = top[:, None] + steps
    cols = left[:, None] + torch.where(flip[:, None] > 0, size - 1 - steps, steps)
    return padded[index[:, None, None], rows[:, :, None], cols[:, None, :]]


def statistics(num_classes: int, device: torch.device) -> Tensor:
    """(2, 3) mean and standard deviation per channel, made once: a CUDA graph can copy nothing from the host."""
    return torch.tensor(STATISTICS[num_classes], device=device)


def normalize(images: Tensor, statistics: Tensor) -> Tensor:
    """(B, 3, H, W) fp32, channels last in memory, of (B, H, W, 3) uint8 images."""
    return images.float().div(255).sub(statistics[0]).div(statistics[1]).permute(0, 3, 1, 2)
