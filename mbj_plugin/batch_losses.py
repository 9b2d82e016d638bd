"""Batch losses for long-tailed classification, and any of the user's own by ``module:Class``.

Each is an ``nn.Module`` called ``loss(logits, target)``, computed in fp32 or better, and a batch loss for Memory-based
Jitter as well: ``MBJLoss(counts, base=...)``. The target is that of :func:`mbj_plugin.checks.check_target`.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mbj_plugin.checks import RANGES, Counts, check_logits, counts_tensor, host_values, on_host
from mbj_plugin.functional import loss_dtype


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over the labelled rows, 0 where there are none."""
    if target.ndim == 2 or (on_host(target) and len(target) and host_values(target).min() >= 0):
        return F.cross_entropy(logits, target)
    loss = F.cross_entropy(logits, target.clamp(min=-1), ignore_index=-1)
    return torch.where((target >= 0).any(), loss, 0.0)


class CrossEntropy(nn.Module):
    """torch's cross-entropy, bit for bit, except for rows without a label."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of (B, C) logits."""
        check_logits(logits, target, soft=True)
        return _cross_entropy(logits, target)


class BalancedSoftmaxLoss(nn.Module):
    """mean_i -log( N_y^tau e^{z_y} / sum_c N_c^tau e^{z_c} ): cross-entropy of logits + tau log N.

    Balanced softmax (Ren et al., 2020, https://arxiv.org/abs/2007.10740) is tau = 1; with a free tau it is the
    logit-adjusted loss (Menon et al., 2021, https://arxiv.org/abs/2007.07314). A test under equal classes uses the
    logits themselves, without the prior.

    Args:
        class_counts: (C,) training images per class. A class with N = 0 has probability 0: it must be no target.
        tau: strength of the adjustment, >= 0; 0 is cross-entropy.

    Raises:
        ValueError: for a value out of range.
    """

    log_prior: Tensor

    def __init__(self, class_counts: Counts, tau: float = 1.0) -> None:
        super().__init__()
        self.tau = RANGES["tau"].checked("tau", tau)
        counts = counts_tensor(class_counts).double()
        # Finite where N = 0, whose softmax is 0 all the same: a soft target's 0 times infinity would be NaN.
        self._exact = (counts / counts.sum()).log().clamp(min=-1e30)
        self.register_buffer("log_prior", self._exact.float(), persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of (B, C) logits."""
        check_logits(logits, target, len(self.log_prior), soft=True)
        logits = logits.to(loss_dtype(logits))
        prior = self.log_prior if logits.dtype == torch.float32 else self._exact.to(logits.device)
        return _cross_entropy(logits + self.tau * prior, target)

    def extra_repr(self) -> str:
        return f"tau={self.tau}"


class FocalLoss(nn.Module):
    """mean_i -(1 - p_{y_i})^gamma log p_{y_i} (Lin et al., 2017, https://arxiv.org/abs/1708.02002, Eq. 4).

    With p the softmax, the multi-class reading that the long-tailed field compares with; detection uses a sigmoid per
    class. gamma = 1 is what LDAM's authors compare with on CIFAR; detection takes 2. Hard labels only.

    Args:
        gamma: focusing strength, >= 0; 0 is cross-entropy.

    Raises:
        ValueError: for gamma < 0.
    """

    def __init__(self, gamma: float = 1.0) -> None:
        super().__init__()
        self.gamma = RANGES["gamma"].checked("gamma", gamma)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of (B, C) logits."""
        return focal_terms(logits, target, self.gamma).sum() / (target >= 0).sum().clamp(min=1)

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}"


def focal_terms(logits: Tensor, target: Tensor, gamma: float) -> Tensor:
    """(B,) terms -(1 - p_y)^gamma log p_y, with p the softmax of (B, C) logits; 0 where unlabelled."""
    check_logits(logits, target)
    logits = logits.to(loss_dtype(logits))
    log_p = -F.cross_entropy(logits, target.clamp(min=-1).long(), ignore_index=-1, reduction="none")
    # 1 - p by expm1: where p is close to 1, the difference would have no digits left. The clamp keeps the gradient of
    # the power finite at p = 1 for gamma < 1.
    return -((-torch.expm1(log_p)).clamp(min=1e-12) ** gamma) * log_p


_CLASSES = {"ce": CrossEntropy, "balanced_softmax": BalancedSoftmaxLoss, "focal": FocalLoss}
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


def create_loss(name: str, class_counts: Counts, *, start: int = 0) -> nn.Module:
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
    if not callable(made_by):
        raise ValueError(f"the loss {name} must be a class, got {made_by!r}")
    arguments = inspect.signature(made_by).parameters
    required = [p.name for p in arguments.values() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    given: dict[str, Any] = dict.fromkeys(
        ["class_counts"] if "class_counts" in arguments else required[:1], class_counts
    )
    if "start" in arguments:
        given["start"] = start
    try:
        loss = made_by(**given)
    except TypeError as error:
        raise ValueError(f"cannot make the loss {name} as Class(class_counts) or Class(): {error}") from error
    if not isinstance(loss, nn.Module):
        raise ValueError(f"the loss {name} must be a torch.nn.Module, got {type(loss).__name__}")
    return loss
