"""Classifier modules that remember their last input, put in place of any timm model's own classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _RecordsInput:
    """Keeps the input of the last training call in ``recorded``, until :meth:`Heads.take` takes it."""

    recorded: Tensor | None = None
    training: bool

    def forward(self, x: Tensor) -> Tensor:
        # Not in evaluation, not in a teacher's or a batch-norm recalibration's forward pass.
        if self.training and torch.is_grad_enabled():
            self.recorded = x
        return super().forward(x)  # type: ignore[misc]


class MBJLinear(_RecordsInput, nn.Linear):
    """``nn.Linear`` that records its input; its state-dict keys are Linear's own."""


class MBJConv2d(_RecordsInput, nn.Conv2d):
    """1 x 1 ``nn.Conv2d`` that records its input, for models whose classifier is a convolution."""


class Heads:
    """The classifier of a model: one layer, or several whose logits the model averages.

    Several (the two heads of a distilled DeiT, say) act as one layer on their concatenated inputs:
    ``mean_k(W_k x_k + b_k) = [W_1 ... W_K] / K  [x_1; ...; x_K] + mean_k b_k``.

    Args:
        layers: K >= 1 recording layers.
    """

    def __init__(self, layers: list[MBJLinear | MBJConv2d]) -> None:
        self.layers = tuple(layers)

    @property
    def weight(self) -> Tensor:
        """(C, D) weight, D over all layers."""
        if len(self.layers) == 1:
            return self.layers[0].weight.flatten(1)
        return torch.cat([layer.weight.flatten(1) for layer in self.layers], dim=1) / len(self.layers)

    @property
    def bias(self) -> Tensor | None:
        """(C,) bias, or None."""
        biases = [layer.bias for layer in self.layers if layer.bias is not None]
        if not biases:
            return None
        return biases[0] if len(self.layers) == 1 else torch.stack(biases).sum(0) / len(self.layers)

    @property
    def num_classes(self) -> int:
        return self.layers[0].weight.shape[0]

    @property
    def dim(self) -> int:
        return sum(layer.weight[0].numel() for layer in self.layers)

    def take(self) -> Tensor:
        """(B, D) input of the classifier in the last forward pass; a second call needs a second forward pass.

        Raises:
            ValueError: where the classifier was not called, or saw more than one vector per image.
        """
        inputs = []
        for layer in self.layers:
            x, layer.recorded = layer.recorded, None
            if x is None:
                raise ValueError(
                    "the model's classifier was not called since the last step: MBJ needs one forward pass of the "
                    "model in training mode before each call of the loss"
                )
            if x.flatten(1).shape[1] != layer.weight[0].numel() or x.ndim == 3:
                raise ValueError(
                    f"the model's classifier sees {tuple(x.shape)}, which is more than one vector per image: "
                    "MBJ does not know such a model, take one with a plain classifier"
                )
            inputs.append(x.flatten(1))
        return inputs[0] if len(inputs) == 1 else torch.cat(inputs, dim=1)


def attach_head(model: Any) -> Heads:
    """Put recording layers in place of ``model.get_classifier()``. Parameters stay the same objects.

    Args:
        model: any timm model; calling it again on the same model is harmless.

    Returns:
        The classifier's layers.

    Raises:
        ValueError: where the model has no classifier, or one that is no linear layer.
    """
    replaced = {id(layer): _recording(layer) for layer in classifier_layers(model)}
    for parent in model.modules():
        for name, child in parent.named_children():
            if id(child) in replaced:
                setattr(parent, name, replaced[id(child)])
    return Heads(list(replaced.values()))


def classifier_layers(model: Any) -> list[nn.Module]:
    """The linear layers of ``model.get_classifier()``.

    Raises:
        ValueError: where the model has no classifier, or one that is no linear layer.
    """
    classifier = model.get_classifier() if hasattr(model, "get_classifier") else None
    roots = classifier if isinstance(classifier, tuple | list) else [classifier]
    layers = [m for root in roots if isinstance(root, nn.Module) for m in root.modules() if _is_classifier(m, model)]
    if not layers:
        raise ValueError(
            f"cannot find the classifier of {type(model).__name__}: get_classifier() gives "
            f"{type(classifier).__name__}, MBJ needs a linear layer with one output per class (is num_classes 0?)"
        )
    return layers


def _is_classifier(module: nn.Module, model: nn.Module) -> bool:
    num_classes = getattr(model, "num_classes", None)
    if isinstance(module, nn.Linear):
        return num_classes in (None, module.out_features)
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.out_channels == num_classes


def _recording(layer: nn.Module) -> MBJLinear | MBJConv2d:
    if isinstance(layer, _RecordsInput):
        assert isinstance(layer, MBJLinear | MBJConv2d)
        return layer
    kind = MBJLinear if isinstance(layer, nn.Linear) else MBJConv2d
    recording: Any = kind.__new__(kind)
    # The same parameters, hooks and mode: an optimizer built before still trains this layer.
    recording.__dict__ = layer.__dict__
    return recording
