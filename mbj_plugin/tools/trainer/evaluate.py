"""Evaluation with the error of each class and of each class group."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from mbj_plugin.sampling import rank_and_world


@torch.inference_mode()
def validate(
    model: nn.Module,
    loader: Any,
    num_classes: int,
    device: torch.device,
    amp_autocast: Callable[[], AbstractContextManager],
    channels_last: bool = False,
) -> dict[str, Any]:
    """Loss, top-1 and top-5 accuracy as timm reports them, and the images and errors of each class, over all ranks.

    Args:
        model: gives (B, C) logits.
        loader: of (image, class) batches; images of a negative class are skipped.
        num_classes: C.
        device: of the model.
        amp_autocast: context of the forward pass.
        channels_last: memory layout of the images.

    Returns:
        "loss", "top1", "top5" (percent), "images" and "wrong" (lists of C).
    """
    model.eval()
    totals = torch.zeros(3, dtype=torch.float64, device=device)  # loss, top-1 hits, top-5 hits
    images = torch.zeros(num_classes, dtype=torch.long, device=device)
    wrong = torch.zeros_like(images)
    rank, ranks = rank_and_world()
    position = rank  # of the batch's first image in the whole set: rank r holds the images r, r + ranks, ...
    for batch, labels in loader:
        batch, labels = batch.to(device), labels.to(device)
        if ranks > 1 and hasattr(loader.dataset, "__len__"):
            # timm's sampler repeats images so that all ranks have as many; they count once.
            places = position + ranks * torch.arange(len(labels), device=device)
            labels = torch.where(places < len(loader.dataset), labels, -1)
            position += ranks * len(labels)
        if channels_last:
            batch = batch.contiguous(memory_format=torch.channels_last)
        with amp_autocast():
            output = model(batch)
        output, labels = output.float()[labels >= 0], labels[labels >= 0]
        hits = output.topk(min(5, num_classes)).indices == labels[:, None]
        loss = F.cross_entropy(output, labels, reduction="sum")
        totals += torch.stack([loss, hits[:, 0].sum(), hits.any(1).sum()])
        images += torch.bincount(labels, minlength=num_classes)
        wrong += torch.bincount(labels[~hits[:, 0]], minlength=num_classes)
    if ranks > 1:
        for tensor in (totals, images, wrong):
            dist.all_reduce(tensor)
    loss, top1, top5 = (totals / images.sum()).tolist()
    return {
        "loss": loss,
        "top1": 100 * top1,
        "top5": 100 * top5,
        "images": images.tolist(),
        "wrong": wrong.tolist(),
    }
