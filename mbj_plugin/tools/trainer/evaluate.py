"""Evaluation of every classifier of a model, in one pass over the images, with the error of each class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import ArrayLike
from timm.utils import unwrap_model
from torch import Tensor, nn

from mbj_plugin.sampling import rank_and_world
from mbj_plugin.timm.head import BATCH_CLASSIFIER, classifier_layers, evaluate_classifiers
from mbj_plugin.tools.group_errors import group_errors

Metrics = dict[str, Any]


@torch.inference_mode()
def validate(
    model: nn.Module,
    loader: Any,
    num_classes: int,
    device: torch.device,
    amp_autocast: Callable[[], AbstractContextManager],
    channels_last: bool = False,
    log_prior: Tensor | None = None,
) -> dict[str, Metrics]:
    """Loss, top-1 and top-5 accuracy as timm reports them, and the errors of each class, over all ranks.

    Args:
        model: gives (B, C) logits.
        loader: of (image, class) batches; images of a negative class are skipped.
        num_classes: C.
        device: of the model.
        amp_autocast: context of the forward pass.
        channels_last: memory layout of the images.
        log_prior: (C,) log of what the batch classifier has seen of each class; None leaves its adjustment out.

    Returns:
        "batch", "batch_adjusted" (its logits less the log of the prior; tau 1) and, where the model has two
        classifiers, "memory". Each "loss", "top1", "top5" and "class_error" (percent), "images" and "wrong" (lists
        of C).
    """
    model.eval()
    images = torch.zeros(num_classes, dtype=torch.long, device=device)
    totals: dict[str, tuple[Tensor, Tensor]] = {}  # loss, top-1 hits and top-5 hits; (C,) wrong
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
        with amp_autocast(), _classifiers_in_fp32(model):
            outputs = evaluate_classifiers(model, batch)
        known = labels >= 0
        labels = labels[known]
        outputs = {name: output.float()[known] for name, output in outputs.items()}
        if log_prior is not None:
            memory = {name: outputs.pop(name) for name in ("memory",) if name in outputs}
            outputs |= {"batch_adjusted": outputs["batch"] - log_prior} | memory
        images += torch.bincount(labels, minlength=num_classes)
        for name, output in outputs.items():
            sums, wrong = totals.setdefault(name, (images.new_zeros(3, dtype=torch.float64), torch.zeros_like(images)))
            hits = output.topk(min(5, num_classes)).indices == labels[:, None]
            loss = F.cross_entropy(output, labels, reduction="sum")
            sums += torch.stack([loss, hits[:, 0].sum(), hits.any(1).sum()])
            wrong += torch.bincount(labels[~hits[:, 0]], minlength=num_classes)
    if ranks > 1:
        for tensor in (images, *(tensor for pair in totals.values() for tensor in pair)):
            dist.all_reduce(tensor)
    return {name: _metrics(images, *pair) for name, pair in totals.items()}


@contextmanager
def _classifiers_in_fp32(model: nn.Module) -> Iterator[None]:
    """Inside, a classifier gives logits of fp32 under autocast too: of half precision many tie, and the first class,
    which is the largest one of a long tail, would win. A model without a linear classifier is left as it is."""

    def again(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor | None:
        if output.dtype == torch.float32:
            return None
        with torch.autocast(output.device.type, enabled=False):
            return type(layer).forward(layer, inputs[0].float())

    try:
        layers = classifier_layers(unwrap_model(model))
    except ValueError:
        layers = []
    twins = [getattr(layer, BATCH_CLASSIFIER) for layer in layers if hasattr(layer, BATCH_CLASSIFIER)]
    hooks = [layer.register_forward_hook(again) for layer in (*layers, *twins)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _metrics(images: Tensor, sums: Tensor, wrong: Tensor) -> Metrics:
    loss, top1, top5 = (sums / images.sum()).tolist()
    seen = images > 0
    class_error = 100 * (wrong[seen].double() / images[seen]).mean().item()
    counts = {"images": images.tolist(), "wrong": wrong.tolist()}
    return {"loss": loss, "top1": 100 * top1, "top5": 100 * top5, "class_error": class_error, **counts}


def errors(metrics: Metrics, class_counts: ArrayLike) -> dict[str, float]:
    """The errors of :func:`group_errors`, and "class_error", the mean of the classes' errors."""
    groups = group_errors(metrics["images"], metrics["wrong"], class_counts)
    return groups | {"class_error": metrics["class_error"]}


def headline(images: ArrayLike, eval_metric: str) -> str:
    """Which error counts: "error", of all images, or "class_error", the mean of the classes', where the evaluation set
    is long-tailed itself: its largest class has more than twice the images of the smallest."""
    seen = np.asarray(images)[np.asarray(images) > 0]
    return "class_error" if eval_metric == "class_error" or seen.max() > 2 * seen.min() else "error"
