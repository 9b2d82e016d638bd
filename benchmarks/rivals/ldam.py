"""LDAM-DRW: margins that grow for rare classes, on a cosine classifier, with deferred re-weighting."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.rivals.class_balanced import effective_number_weights
from mbj_plugin.checks import Range, check_logits, counts_tensor


class CosineLinear(nn.Module):
    """A classifier that returns cosine similarities, cos(x, w_c), without bias.

    No ``nn.Linear``: whoever reads weights and inputs of a linear classifier (``MBJLoss``) would compute other logits,
    and must not take it for one.

    Args:
        in_features: D, length of a feature.
        out_features: C, number of classes.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(F.normalize(torch.empty(out_features, in_features).uniform_(-1, 1), dim=1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C) cosines of (B, D) features."""
        return F.normalize(x, dim=1) @ F.normalize(self.weight, dim=1).T

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def use_cosine_classifier(model: nn.Module) -> nn.Module:
    """Put a :class:`CosineLinear` in place of the model's linear classifier; before the optimizer is built.

    Args:
        model: a model with timm's ``get_classifier()``, which gives one ``nn.Linear``.

    Returns:
        The same model.

    Raises:
        ValueError: where the classifier is no single linear layer.
    """
    get_classifier = getattr(model, "get_classifier", None)
    classifier = get_classifier() if get_classifier is not None else None
    if not isinstance(classifier, nn.Linear):
        raise ValueError(
            f"LDAM needs a model whose classifier is one nn.Linear, {type(model).__name__} has "
            f"{type(classifier).__name__}: take another model or another loss"
        )
    cosine = CosineLinear(classifier.in_features, classifier.out_features).to(classifier.weight.device)
    for parent in model.modules():
        for name, child in parent.named_children():
            if child is classifier:
                setattr(parent, name, cosine)
    return model


class LDAMLoss(nn.Module):
    """Cross-entropy of s (cos_c - [c = y] Delta_y), Delta_c = K / N_c^(1/4), classes re-weighted from ``start`` on.

    Cao et al., 2019 (https://arxiv.org/abs/1906.07413). As in the authors' code, K is such that the largest margin is
    ``max_margin``, the logits are cosines (:func:`use_cosine_classifier`) and are scaled here, not in the model, and
    the deferred weights (DRW) are those of the effective number.

    Args:
        class_counts: (C,) training images per class. A class with N = 0 has margin and weight 0.
        max_margin: margin of the rarest class, >= 0.
        scale: s > 0.
        start: calls before the re-weighting begins; counted in training with grad enabled, and saved.
        beta: of the effective number, see :func:`effective_number_weights`.

    Raises:
        ValueError: for a value out of range.
    """

    #: The logits must be cosines: whoever builds the model calls this.
    adapt_model = staticmethod(use_cosine_classifier)

    margins: Tensor
    deferred_weights: Tensor
    step: Tensor

    def __init__(
        self,
        class_counts: Tensor | Sequence[int],
        max_margin: float = 0.5,
        scale: float = 30.0,
        start: int = 0,
        beta: float = 0.9999,
    ) -> None:
        super().__init__()
        if not 0 < scale < float("inf"):
            raise ValueError(f"scale must be a finite number > 0, got {scale}")
        if int(start) != start or start < 0:
            raise ValueError(f"start must be a number of steps >= 0, got {start}")
        self.scale, self.start = float(scale), int(start)
        counts = counts_tensor(class_counts).double()
        margins = torch.where(counts > 0, counts.clamp(min=1) ** -0.25, 0.0)
        margins = margins * (Range().checked("max_margin", max_margin) / margins.max())
        self.register_buffer("margins", margins.float(), persistent=False)
        self.register_buffer("deferred_weights", effective_number_weights(counts, beta), persistent=False)
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def forward(self, cosine: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of (B, C) cosines and (B,) classes in [0, C); with weights, the weighted mean."""
        check_logits(cosine, target)
        margin = torch.zeros_like(cosine, dtype=torch.float32).scatter_(
            1, target[:, None], self.margins[target][:, None]
        )
        weights = torch.where(self.step >= self.start, self.deferred_weights, torch.ones_like(self.deferred_weights))
        if self.training and torch.is_grad_enabled():
            self.step.add_(1)
        return F.cross_entropy(self.scale * (cosine.float() - margin), target, weight=weights)

    def extra_repr(self) -> str:
        return f"scale={self.scale}, start={self.start}"
