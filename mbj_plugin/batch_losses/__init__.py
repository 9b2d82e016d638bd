"""What the paper compares with: batch losses for long-tailed classification, one small file each.

Each is an ``nn.Module`` called ``loss(logits, target)`` on (B, C) logits and (B,) hard labels. Any of them is a batch
loss for Memory-based Jitter as well, where its classifier is a plain linear layer: ``MBJLoss(counts, base=...)``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mbj_plugin.batch_losses.balanced_softmax import BalancedSoftmaxLoss
from mbj_plugin.batch_losses.class_balanced import ClassBalancedFocalLoss, effective_number_weights
from mbj_plugin.batch_losses.focal import FocalLoss
from mbj_plugin.batch_losses.ldam import CosineLinear, LDAMLoss, use_cosine_classifier

LOSSES = ("ce", "focal", "cb_focal", "ldam_drw", "balanced_softmax")
#: Those that train a classifier of their own, which no memory knows; "bbn", of two branches and two samplers, is
#: more than a loss: :mod:`mbj_plugin.batch_losses.bbn`.
OWN_CLASSIFIER = ("ldam_drw", "bbn")


def create_loss(name: str, class_counts: Tensor | Sequence[int], *, start: int = 0) -> nn.Module:
    """The loss of that name, with the settings of its own paper. Move it to the device of the logits.

    Args:
        name: one of ``LOSSES``.
        class_counts: (C,) training images per class, N_i >= 0.
        start: calls before the deferred re-weighting of ``ldam_drw`` begins, as MBJ's ``start``; the authors take the
            first decay of the learning rate. The other losses have no such phase.

    Returns:
        The loss. Where it has a true ``cosine_classifier`` attribute, pass the model through
        :func:`use_cosine_classifier` before the optimizer is built.

    Raises:
        ValueError: for an unknown name, and for counts or a start out of range.
    """
    if name == "ce":
        return nn.CrossEntropyLoss()
    if name == "focal":
        return FocalLoss()
    if name == "cb_focal":
        return ClassBalancedFocalLoss(class_counts)
    if name == "ldam_drw":
        return LDAMLoss(class_counts, start=start)
    if name == "balanced_softmax":
        return BalancedSoftmaxLoss(class_counts)
    raise ValueError(f"unknown loss {name!r}: take one of {', '.join(LOSSES)}")


__all__ = [
    "LOSSES",
    "OWN_CLASSIFIER",
    "BalancedSoftmaxLoss",
    "ClassBalancedFocalLoss",
    "CosineLinear",
    "FocalLoss",
    "LDAMLoss",
    "create_loss",
    "effective_number_weights",
    "use_cosine_classifier",
]
