"""``loss_type="mbj"`` in timm's loss factory, where timm has one (1.0.31 and later)."""

from __future__ import annotations

import functools
import inspect
import sys
from typing import Any

import timm.loss
from torch import nn

from mbj_plugin.timm.criterion import MBJLoss

# Arguments that go to MBJLoss; all others are the factory's own and build the batch loss.
_OURS = set(inspect.signature(MBJLoss).parameters) - {"base", "class_counts", "smoothing"}


def register_loss() -> bool:
    """Add "mbj" to ``timm.loss.LOSS_TYPES`` and let ``create_classification_loss`` build it. Idempotent.

    ``create_classification_loss("mbj", class_counts=[...], eta=15.0, smoothing=0.1)`` gives an :class:`MBJLoss` over
    the loss that the same call without "mbj" gives (``base_loss_type`` names another one).

    Returns:
        Whether this timm has a loss factory.
    """
    original = getattr(timm.loss, "create_classification_loss", None)
    if original is None:
        return False
    if "mbj" in timm.loss.LOSS_TYPES:
        return True
    loss_types = (*timm.loss.LOSS_TYPES, "mbj")

    @functools.wraps(original)
    def create_classification_loss(loss_type: str | None = None, *args: Any, **kwargs: Any) -> nn.Module:
        if loss_type != "mbj":
            return original(loss_type, *args, **kwargs)
        if args or kwargs.pop("multi_label", False):
            raise ValueError("Loss type 'mbj' takes keyword arguments and single-label targets only.")
        if (class_counts := kwargs.pop("class_counts", None)) is None:
            raise ValueError("The mbj loss requires class_counts, the training images per class.")
        ours = {key: kwargs.pop(key) for key in _OURS & kwargs.keys()}
        if kwargs.get("soft_targets"):  # then Mixup has put the smoothing into the targets
            ours["smoothing"] = kwargs.get("smoothing", 0.0)
        return MBJLoss(class_counts, original(kwargs.pop("base_loss_type", None), **kwargs), **ours)

    # timm imports both names into several of its modules; each of them must see the new ones.
    for name, module in list(sys.modules.items()):
        if name == "timm" or name.startswith("timm."):
            if vars(module).get("create_classification_loss") is original:
                module.create_classification_loss = create_classification_loss  # type: ignore[attr-defined]
            if vars(module).get("LOSS_TYPES") == loss_types[:-1]:
                module.LOSS_TYPES = loss_types  # type: ignore[attr-defined]
    return True
