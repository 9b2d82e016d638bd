"""Gradient clipping with two classifiers: the second one must not change what the features and the first one get."""

from __future__ import annotations

from typing import Any

import torch
from timm import utils
from torch import Tensor, nn

from mbj_plugin.timm.compat import replace_clip
from mbj_plugin.timm.head import Heads

_STOCK = utils.dispatch_clip_grad


class ClipParameters(list[nn.Parameter]):
    """What a run without MBJ would clip, in the model's order, for any clipping function.

    Args:
        module: the model, wrapped or not.
        heads: of the model.
        exclude_head: as in timm, whose agc leaves the last two parameters out.

    Attributes:
        memory: pairs of (parameter of the batch classifier, the same of the memory classifier).
    """

    def __init__(self, module: nn.Module, heads: Heads, exclude_head: bool) -> None:
        batch_of = {id(memory): batch for memory, batch in heads.parameter_pairs}
        batches = {id(batch) for batch in batch_of.values()}
        parameters = [batch_of.get(id(p), p) for p in module.parameters() if id(p) not in batches]
        super().__init__(parameters[:-2] if exclude_head else parameters)
        self.memory = [] if exclude_head else [(batch, memory) for memory, batch in heads.parameter_pairs]


def dispatch_clip_grad(parameters: Any, value: float, mode: str = "norm", norm_type: float = 2.0) -> None:
    """timm's ``dispatch_clip_grad``, which clips the memory classifier as if it were the only one.

    By value that is element by element. By norm, the memory classifier is scaled by what the norm of features and
    memory classifier asks for, everything else by the norm of features and batch classifier, as without MBJ.
    """
    memory = parameters.memory if isinstance(parameters, ClipParameters) else []
    if memory and mode == "norm":
        memory_of = {id(batch): own for batch, own in memory}
        with_memory = [memory_of.get(id(p), p) for p in parameters]
        # An infinite bound scales by 1: this is the norm alone, before the features are scaled.
        norm = torch.nn.utils.clip_grad_norm_(with_memory, float("inf"), norm_type=norm_type)
        _scale([own for _, own in memory], value, norm)
    elif memory and mode == "value":
        torch.nn.utils.clip_grad_value_([own for _, own in memory], value)
    _STOCK(parameters, value, mode=mode, norm_type=norm_type)


def _scale(parameters: list[nn.Parameter], max_norm: float, norm: Tensor) -> None:
    scale = torch.clamp(max_norm / (norm + 1e-6), max=1.0)  # as in torch's clip_grad_norm_
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(scale.to(parameter.grad.device))


def install() -> None:
    """Let timm's trainers and its loss scaler, which call the function by these names, clip both classifiers."""
    replace_clip(dispatch_clip_grad)
