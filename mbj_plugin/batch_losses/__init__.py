"""Batch losses for long-tailed classification, one small file each, and any of the user's own by ``module:Class``.

Each is an ``nn.Module`` called ``loss(logits, target)`` on (B, C) logits and (B,) hard labels, and a batch loss for
Memory-based Jitter as well: ``MBJLoss(counts, base=...)``.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mbj_plugin.batch_losses.balanced_softmax import BalancedSoftmaxLoss
from mbj_plugin.batch_losses.focal import FocalLoss

_CLASSES = {"ce": nn.CrossEntropyLoss, "balanced_softmax": BalancedSoftmaxLoss, "focal": FocalLoss}
LOSSES = tuple(_CLASSES)


def loss_class(name: str) -> Any:
    """The class of one of ``LOSSES``, or the one that ``module:Class`` names.

    A class may have a static ``adapt_model(model)``, which gives the model that it wants, with another kind of
    classifier say; a trainer calls it before the optimizer is made.

    Raises:
        ValueError: for an unknown name.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        if name not in _CLASSES:
            raise ValueError(f"unknown loss {name!r}: take one of {', '.join(LOSSES)}, or module:Class of your own")
        return _CLASSES[name]
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # where one's own module lies; an installed command does not look there
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"cannot find the loss {name}, module:Class: {error}") from error


def create_loss(name: str, class_counts: Tensor | Sequence[int], *, start: int = 0) -> nn.Module:
    """The loss of that name. Move it to the device of the logits.

    Args:
        name: one of ``LOSSES``, or ``module:Class``, which is made as ``Class(class_counts)`` where it has an argument
            of that name or one without a default, else as ``Class()``.
        class_counts: (C,) training images per class, N_i >= 0.
        start: calls before a late phase begins, as MBJ's ``start``, for a class with an argument of that name.

    Raises:
        ValueError: for an unknown name, and for counts out of range.
    """
    made_by = loss_class(name)
    if name == "ce":
        return made_by()
    arguments = inspect.signature(made_by).parameters
    required = [p.name for p in arguments.values() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    given: dict[str, Any] = dict.fromkeys(
        ["class_counts"] if "class_counts" in arguments else required[:1], class_counts
    )
    if "start" in arguments:
        given["start"] = start
    return made_by(**given)


__all__ = ["LOSSES", "BalancedSoftmaxLoss", "FocalLoss", "create_loss", "loss_class"]
