"""The classifier of any timm model, made to record its input and, where asked for, to be two classifiers in training.

The *memory classifier* is the model's own layer: what evaluation, checkpoints and an average of the model see. The
*batch classifier* is a second layer beside it, which gives the model's output while training, so that it alone sends
gradients into the features. Both start equal. The second one is in no ``state_dict``: stock timm loads the checkpoint.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH_CLASSIFIER = "batch_classifier"


class Recording:
    """Mixed into a layer's own class: records the last training call, until :meth:`Heads.take` takes it."""

    #: Input of the last training call.
    recorded: Tensor | None = None
    #: Logits of the memory classifier on the detached input, where there is a batch classifier.
    memory_output: Tensor | None = None
    #: The second layer, or None.
    batch_classifier: nn.Module | None
    training: bool

    def forward(self, x: Tensor) -> Tensor:
        # Not in evaluation, not in a teacher's or a batch-norm recalibration's forward pass.
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(x)  # type: ignore[misc]
        self.recorded = x
        if self.batch_classifier is None:
            return super().forward(x)  # type: ignore[misc]
        self.memory_output = super().forward(x.detach())  # type: ignore[misc]
        return self.batch_classifier(x)

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        state = super().state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)  # type: ignore[misc]
        for key in [key for key in state if key.startswith(f"{prefix}{BATCH_CLASSIFIER}.")]:
            del state[key]
        return state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Whoever loads weights into the model starts with two equal classifiers again.
        if self.batch_classifier is not None:
            for key in [key for key in state_dict if key.startswith(prefix)]:
                state_dict.setdefault(f"{prefix}{BATCH_CLASSIFIER}.{key[len(prefix) :]}", state_dict[key])
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]

    def __getstate__(self) -> dict[str, Any]:
        # A copy has seen no step: what is recorded belongs to the graph of this one.
        return {k: v for k, v in self.__dict__.items() if k not in ("recorded", "memory_output")}

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _empty_recording, (_own_class(self),), self.__getstate__()


class Heads:
    """The classifier of a model: one layer, or several whose logits the model averages.

    Several (the two heads of a distilled DeiT, say) act as one layer on their concatenated inputs:
    ``mean_k(W_k x_k + b_k) = [W_1 ... W_K] / K  [x_1; ...; x_K] + mean_k b_k``.

    Args:
        layers: K >= 1 recording layers.
    """

    def __init__(self, layers: list[Any]) -> None:
        self.layers = tuple(layers)

    @property
    def batch_layers(self) -> tuple[Any, ...]:
        """The layers that give the model's output while training."""
        return tuple(layer if layer.batch_classifier is None else layer.batch_classifier for layer in self.layers)

    @property
    def twins(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """(parameter of the memory classifier, the same of the batch classifier); empty where they are one."""
        return [
            (own, batch)
            for layer in self.layers
            if layer.batch_classifier is not None
            for own, batch in zip(_own_parameters(layer), layer.batch_classifier.parameters(), strict=True)
        ]

    @property
    def num_classes(self) -> int:
        return self.layers[0].weight.shape[0]

    @property
    def dim(self) -> int:
        return sum(layer.weight[0].numel() for layer in self.layers)

    @property
    def device(self) -> torch.device:
        return self.layers[0].weight.device

    def affine(self, batch: bool = False) -> tuple[Tensor, Tensor | None]:
        """(C, D) weight and (C,) bias (or None) of the memory classifier, D over all layers.

        Args:
            batch: of the batch classifier instead.
        """
        parts = [_affine(layer) for layer in (self.batch_layers if batch else self.layers)]
        if len(parts) == 1:
            return parts[0]
        biases = [bias for _, bias in parts if bias is not None]
        weight = torch.cat([weight for weight, _ in parts], dim=1) / len(parts)
        return weight, torch.stack(biases).sum(0) / len(parts) if biases else None

    def take(self) -> tuple[Tensor, Tensor | None]:
        """(B, D) input of the classifier in the last forward pass, and the (B, C) logits of the memory classifier on
        it where that is another one than the batch classifier. A second call needs a second forward pass.

        Raises:
            ValueError: where the classifier was not called, or saw more than one vector per image.
        """
        inputs, outputs = [], []
        for layer in self.layers:
            x, output = layer.recorded, layer.memory_output
            layer.recorded = layer.memory_output = None
            if x is None:
                raise ValueError(
                    "the model's classifier was not called since the last step: MBJ needs one forward pass of the "
                    "model in training mode before each call of the loss. If the classifier was replaced "
                    "(reset_classifier) or the model copied, call loss.bind(model) again"
                )
            if x.flatten(1).shape[1] != layer.weight[0].numel() or x.ndim == 3:
                raise ValueError(
                    f"the model's classifier sees {tuple(x.shape)}, which is more than one vector per image: "
                    "MBJ does not know such a model, take one with a plain classifier"
                )
            inputs.append(x.flatten(1))
            if output is not None:
                outputs.append(output.flatten(1))
        if len(inputs) == 1:
            return inputs[0], outputs[0] if outputs else None
        return torch.cat(inputs, dim=1), torch.stack(outputs).mean(0) if outputs else None


def attach_head(model: Any, own_classifier: bool = False) -> Heads:
    """Make the layers of ``model.get_classifier()`` record. They stay the same objects, with the same parameters.

    Args:
        model: any timm model; calling it again on the same model is harmless.
        own_classifier: give the memory a classifier of its own; a model that has one keeps both.

    Returns:
        The classifier's layers.

    Raises:
        ValueError: where the model has no classifier, or one that is no linear layer.

    Example:
        >>> import timm
        >>> model = timm.create_model("resnet32_cifar", num_classes=3, depth=8, width=4)
        >>> layers, keys = attach_head(model, own_classifier=True), list(model.state_dict())
        >>> detach_head(model)
        >>> keys == list(model.state_dict())  # the second classifier is in none of them
        True
    """
    layers: list[Any] = classifier_layers(model)
    for layer in layers:
        if isinstance(layer, Recording) and (layer.batch_classifier is not None) == own_classifier:
            continue
        _detach(layer)
        layer.batch_classifier = _twin(layer) if own_classifier else None
        layer.__class__ = _recording_class(_own_class(layer))
    return Heads(layers)


def detach_head(model: nn.Module) -> None:
    """Undo :func:`attach_head`: the model is stock again, with the memory classifier as its classifier."""
    for layer in model.modules():
        _detach(layer)


def _detach(layer: Any) -> None:
    if isinstance(layer, Recording):
        del layer.batch_classifier
        layer.__dict__.pop("recorded", None)
        layer.__dict__.pop("memory_output", None)
        layer.__class__ = _own_class(layer)


def _twin(layer: nn.Module) -> nn.Module:
    """A copy of the layer; hooks are called once, for the layer."""
    twin = copy.deepcopy(layer)
    for hooks in (twin._forward_hooks, twin._forward_pre_hooks, twin._backward_hooks, twin._backward_pre_hooks):
        hooks.clear()
    return twin


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


def _own_parameters(layer: nn.Module) -> list[nn.Parameter]:
    return [p for name, p in layer.named_parameters() if not name.startswith(f"{BATCH_CLASSIFIER}.")]


def _affine(layer: Any) -> tuple[Tensor, Tensor | None]:
    """(C, D) weight and (C,) bias of what the layer computes, whatever it makes of its parameters."""
    kind = _own_class(layer)
    if kind.forward in (nn.Linear.forward, nn.Conv2d.forward):
        return layer.weight.flatten(1), layer.bias
    # Its forward is its own (normalised weights, a scale): what it gives for 0 and for each unit vector is the map.
    with torch.autocast(layer.weight.device.type, enabled=False):
        dim = layer.weight[0].numel()
        zero = layer.weight.new_zeros(1, dim)
        units = torch.eye(dim, dtype=layer.weight.dtype, device=layer.weight.device)
        shape = (-1, *layer.weight.shape[1:])
        bias = kind.forward(layer, zero.view(shape)).flatten(1)
        weight = kind.forward(layer, units.view(shape)).flatten(1) - bias
    return weight.T, bias[0]


@functools.cache
def _recording_class(kind: Any) -> Any:
    return type(f"Recording{kind.__name__}", (Recording, kind), {})


def _own_class(layer: Any) -> Any:
    kind = type(layer)
    return kind.__mro__[2] if isinstance(layer, Recording) else kind


def _empty_recording(kind: type) -> Any:
    return object.__new__(_recording_class(kind))


@contextmanager
def recorded_inputs(layers: list[nn.Module]) -> Iterator[list[Tensor]]:
    """The (B, D) input of each layer, in the order in which they are called."""
    inputs: list[Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _, x: inputs.append(x[0].flatten(1))) for layer in layers]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()


def same_map(weight: Tensor, bias: Tensor | None, features: Tensor, output: Tensor, tolerance: float = 0.05) -> bool:
    """Whether ``output`` is what a linear layer computes from ``features``, up to half precision's error by default."""
    with torch.no_grad(), torch.autocast(output.device.type, enabled=False):
        expected = F.linear(features.float(), weight.float(), None if bias is None else bias.float())
        return expected.shape == output.shape and torch.allclose(
            expected, output.float(), rtol=tolerance, atol=tolerance * float(expected.abs().max())
        )
