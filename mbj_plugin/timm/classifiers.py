"""The classification layers of any timm model: which they are, what they see and what they compute."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Attribute of a layer that has a second classifier beside it, see :mod:`mbj_plugin.timm.head`.
BATCH_CLASSIFIER = "batch_classifier"


def classifier_layers(model: Any) -> list[nn.Module]:
    """The linear layers of ``model.get_classifier()``.

    Raises:
        ValueError: where the model has no classifier, or one that is no linear layer.
    """
    classifier = model.get_classifier() if hasattr(model, "get_classifier") else None
    roots = classifier if isinstance(classifier, tuple | list) else [classifier]
    modules = [(name, m) for root in roots if isinstance(root, nn.Module) for name, m in root.named_modules()]
    layers = [m for name, m in modules if BATCH_CLASSIFIER not in name.split(".") and _is_classifier(m, model)]
    if not layers:
        raise ValueError(
            f"cannot find the classifier of {type(model).__name__}: get_classifier() gives "
            f"{type(classifier).__name__}, MBJ needs a linear layer with one output per class (is num_classes 0?)"
        )
    for layer in layers:
        if not layer.weight.is_leaf and not torch.nn.utils.parametrize.is_parametrized(layer):
            raise ValueError(
                "the classifier's weight is computed by a hook (torch.nn.utils.weight_norm): use "
                "torch.nn.utils.parametrizations.weight_norm, which MBJ can follow"
            )
    return layers


def _is_classifier(module: nn.Module, model: nn.Module) -> bool:
    num_classes = getattr(model, "num_classes", None)
    if isinstance(module, nn.Linear):
        return num_classes in (None, module.out_features)
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.out_channels == num_classes


def affine_map(layer: Any) -> tuple[Tensor, Tensor | None]:
    """(C, D) weight and (C,) bias of what the layer computes, whatever it makes of its parameters."""
    forward = type(layer).forward  # past the hooks
    if forward in (nn.Linear.forward, nn.Conv2d.forward):
        return layer.weight.flatten(1), layer.bias
    # Its forward is its own (normalised weights, a scale): what it gives for 0 and for each unit vector is the map.
    with torch.autocast(layer.weight.device.type, enabled=False):
        dim = layer.weight[0].numel()
        units = torch.eye(dim, dtype=layer.weight.dtype, device=layer.weight.device)
        shape = (-1, *layer.weight.shape[1:])
        bias = forward(layer, layer.weight.new_zeros(1, dim).view(shape)).flatten(1)
        weight = forward(layer, units.view(shape)).flatten(1) - bias
    return weight.T, bias[0]


def same_map(weight: Tensor, bias: Tensor | None, features: Tensor, output: Tensor, tolerance: float = 0.05) -> bool:
    """Whether ``output`` is what a linear layer computes from ``features``, up to half precision's error by default."""
    with torch.no_grad(), torch.autocast(output.device.type, enabled=False):
        expected = F.linear(features.float(), weight.float(), None if bias is None else bias.float())
        return expected.shape == output.shape and torch.allclose(
            expected, output.float(), rtol=tolerance, atol=tolerance * float(expected.abs().max())
        )
