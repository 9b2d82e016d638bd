"""The classifier of any timm model, made to record its input and, where asked for, to be two classifiers in training.

The *memory classifier* is the model's own layer: what evaluation, checkpoints and stock timm see. The *batch
classifier* is a second layer beside it, which gives the model's output while training, so that it alone sends
gradients into the features. Both start equal. The second one is in no ``state_dict`` of the model: the loss saves it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mbj_plugin.sampling import rank_and_world
from mbj_plugin.timm.classifiers import BATCH_CLASSIFIER, affine_map, classifier_layers


class Recorder:
    """The hooks of one layer: they record the last training call, and let the batch classifier give the output.

    Args:
        layer: linear; gets the attribute ``recorder``.
        own_classifier: put a batch classifier beside it, ``layer.batch_classifier``.
    """

    #: Input of the last training call, and the memory classifier's output for it, until they are popped.
    recorded: Tensor | None = None
    output: Tensor | None = None
    #: What the batch classifier says in evaluation, where it is asked.
    batch_output: Tensor | None = None
    asked = False
    #: Whether the batch classifier is left out of the model's state, as stock timm wants it.
    hidden = True
    #: Whether there was a step: until then, weights that are loaded are those of both classifiers.
    trained = False

    def __init__(self, layer: Any, own_classifier: bool) -> None:
        self.own_classifier = own_classifier
        if own_classifier:
            twin = copy.deepcopy(layer)  # whose hooks are called once, for the layer
            for hooks in (twin._forward_hooks, twin._forward_pre_hooks, twin._backward_hooks, twin._backward_pre_hooks):
                hooks.clear()
            layer.batch_classifier = twin
        layer.recorder = self
        self.handles = [
            layer.register_forward_pre_hook(self._before),
            layer.register_forward_hook(self._after),
            layer.register_state_dict_post_hook(_hide),
            layer.register_load_state_dict_pre_hook(self._complete),
        ]

    def remove(self, layer: Any) -> None:
        """The layer is what it was."""
        for handle in self.handles:
            handle.remove()
        del layer.recorder
        if self.own_classifier:
            del layer.batch_classifier

    def _before(self, layer: Any, inputs: tuple[Tensor]) -> Any:
        # Not in evaluation, not in a teacher's or a batch-norm recalibration's forward pass.
        if not (layer.training and torch.is_grad_enabled()):
            return None
        if next(layer.parameters(), None) is None:
            raise ValueError("MBJ does not train with DataParallel: take DistributedDataParallel, or one device")
        self.recorded, self.trained = inputs[0], True
        return inputs[0].detach() if self.own_classifier else None

    def _after(self, layer: Any, inputs: tuple[Tensor], output: Tensor) -> Any:
        if not self.own_classifier:
            return None
        if not (layer.training and torch.is_grad_enabled()):
            self.batch_output = layer.batch_classifier(inputs[0]) if self.asked else None
            return None
        self.output = output
        batch_output = layer.batch_classifier(self.recorded)
        # DDP that looks for unused parameters does so from the model's output.
        return beside(batch_output, output, False) if rank_and_world()[1] > 1 else batch_output

    def _complete(self, layer: Any, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        if not self.own_classifier:
            return
        for key, value in layer.batch_classifier.state_dict().items():
            value = value if self.trained else state.get(f"{prefix}{key}")
            if value is not None:
                state.setdefault(f"{prefix}{BATCH_CLASSIFIER}.{key}", value)

    def pop(self) -> tuple[Tensor | None, Tensor | None]:
        """What was recorded, once."""
        recorded, output, self.recorded, self.output = self.recorded, self.output, None, None
        return recorded, output

    def __getstate__(self) -> dict[str, Any]:
        # A copy has seen no step: what is recorded belongs to the graph of this one.
        return {k: v for k, v in self.__dict__.items() if k not in ("recorded", "output", "batch_output")}


def _hide(layer: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    if layer.recorder.hidden:
        for key in [key for key in state if key.startswith(f"{prefix}{BATCH_CLASSIFIER}.")]:
            del state[key]


class _Beside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shown: Tensor, hidden: Tensor, gradient: bool) -> Tensor:
        ctx.gradient = gradient
        return shown.view_as(shown)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        return gradient, gradient if ctx.gradient else None, None


def beside(shown: Tensor, hidden: Tensor, gradient: bool) -> Tensor:
    """``shown``, in whose graph ``hidden`` is too, and gets the same gradient or none."""
    return _Beside.apply(shown, hidden, gradient)


class Heads:
    """The classifier of a model: one layer, or several whose logits the model averages.

    Several (the two heads of a distilled DeiT, say) act as one layer on their concatenated inputs:
    ``mean_k(W_k x_k + b_k) = [W_1 ... W_K] / K  [x_1; ...; x_K] + mean_k b_k``.

    Args:
        layers: K >= 1 linear layers.
    """

    def __init__(self, layers: list[Any]) -> None:
        self.layers = tuple(layers)

    @property
    def batch_layers(self) -> tuple[Any, ...]:
        """The layers that give the model's output while training."""
        return tuple(getattr(layer, BATCH_CLASSIFIER, layer) for layer in self.layers)

    @property
    def parameter_pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """(parameter of the memory classifier, the same of the batch classifier); empty where they are one."""
        return [
            (own, batch)
            for layer, twin in zip(self.layers, self.batch_layers, strict=True)
            if twin is not layer
            for own, batch in zip(_own_parameters(layer), twin.parameters(), strict=True)
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
        parts = [affine_map(layer) for layer in (self.batch_layers if batch else self.layers)]
        if len(parts) == 1:
            return parts[0]
        biases = [bias for _, bias in parts if bias is not None]
        weight = torch.cat([weight for weight, _ in parts], dim=1) / len(parts)
        return weight, torch.stack(biases).sum(0) / len(parts) if biases else None

    def pop_recorded(self) -> tuple[Tensor, Tensor | None]:
        """(B, D) input of the classifier in the last forward pass, and the (B, C) logits of the memory classifier on
        it where that is another one than the batch classifier. A second call needs a second forward pass.

        Raises:
            ValueError: where the classifier was not called, or saw more than one vector per image.
        """
        inputs, outputs = [], []
        for layer in self.layers:
            x, output = layer.recorder.pop() if hasattr(layer, "recorder") else (None, None)
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
        return _joined(inputs), _mean(outputs) if outputs else None


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
        recorder = getattr(layer, "recorder", None)
        if recorder is None or recorder.own_classifier != own_classifier:
            _detach(layer)
            Recorder(layer, own_classifier)
    return Heads(layers)


def detach_head(model: nn.Module) -> None:
    """Undo :func:`attach_head`: the model is stock again, with the memory classifier as its classifier."""
    for layer in list(model.modules()):
        _detach(layer)


def _detach(layer: Any) -> None:
    if isinstance(recorder := getattr(layer, "recorder", None), Recorder):
        recorder.remove(layer)


def recording_layers(model: nn.Module) -> list[Any]:
    """The layers of a model that has two classifiers, however it is wrapped; none of any other model."""
    layers: list[Any] = list(model.modules())
    return [m for m in layers if isinstance(getattr(m, "recorder", None), Recorder) and m.recorder.own_classifier]


def evaluate_classifiers(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """(B, C) logits of both classifiers, from one forward pass in evaluation mode.

    Args:
        model: in evaluation mode; also a copy or an average of the one that a loss was bound to, in
            DistributedDataParallel or compiled.
        images: what the model takes.

    Returns:
        "batch", exactly what a run without MBJ gives, and "memory", the model's own output. Of a model with one
        classifier "batch" alone.

    Raises:
        ValueError: for a model in training mode.
    """
    layers = recording_layers(model)
    recorders: list[Recorder] = [layer.recorder for layer in layers]
    if not recorders:
        return {"batch": model(images)}
    if any(layer.training for layer in layers):
        raise ValueError("evaluate_classifiers needs the model in evaluation mode: call model.eval() first")
    try:
        for recorder in recorders:
            recorder.asked = True
        memory = model(images)
        outputs = [recorder.batch_output for recorder in recorders]
    finally:
        for recorder in recorders:
            recorder.asked, recorder.batch_output = False, None
    return {"batch": _mean([output.flatten(1) for output in outputs if output is not None]), "memory": memory}


@contextmanager
def full_state(*models: nn.Module) -> Iterator[None]:
    """Inside, the models' ``state_dict`` has the batch classifier too: for an average of all that is trained.

    Example:
        >>> import timm
        >>> from timm.utils import ModelEmaV3
        >>> model = timm.create_model("resnet32_cifar", num_classes=3, depth=8, width=4)
        >>> layers, average = attach_head(model, own_classifier=True), ModelEmaV3(model)
        >>> with full_state(model, average.module):
        ...     average.update(model)
    """
    recorders: list[Recorder] = [layer.recorder for model in models for layer in recording_layers(model)]
    try:
        for recorder in recorders:
            recorder.hidden = False
        yield
    finally:
        for recorder in recorders:
            recorder.hidden = True


def _own_parameters(layer: nn.Module) -> list[nn.Parameter]:
    return [p for name, p in layer.named_parameters() if not name.startswith(f"{BATCH_CLASSIFIER}.")]


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _mean(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(parts).mean(0)
