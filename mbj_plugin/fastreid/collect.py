"""Brings each head's memory loss into the model's loss dict, whatever the model does with its heads.

fast-reid's models build their loss dict from a fixed list of names. A forward hook on the model adds ours behind it:
the same for Baseline, MGN with its eight heads, MoCo and Distiller, and inside DistributedDataParallel.
"""

from __future__ import annotations

import functools

import torch
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY
from fastreid.utils import events
from torch import nn

from mbj_plugin.fastreid.head import MBJHead


def mbj_heads(model: nn.Module) -> list[MBJHead]:
    """Heads of ``model`` that hold a memory."""
    return [module for module in model.modules() if isinstance(module, MBJHead) and module.memories]


def collect_losses(model: nn.Module) -> None:
    """Make ``model`` return ``loss_mbj`` in its loss dict: the mean over its heads, as MGN weights its eight.

    Models that fast-reid's registry builds have it already. A second call changes nothing.
    """
    if not getattr(model, "collects_mbj", False):
        model.collects_mbj = True
        model.register_forward_pre_hook(_open)
        model.register_forward_hook(_collect)


def _open(model: nn.Module, inputs: tuple) -> None:
    for head in mbj_heads(model):
        if head.collecting:  # the last forward pass ended in an exception
            head.pending.clear()
        head.collecting = True


def _collect(model: nn.Module, inputs: tuple, outputs: object) -> object:
    heads = mbj_heads(model)
    losses = []
    for head in heads:
        head.collecting = False
        losses += head.pending
        head.pending = []
    if not losses:
        return outputs
    if not isinstance(outputs, dict):
        raise TypeError(
            f"{type(model).__name__} returns {type(outputs).__name__} in training, not a dict of losses: the memory "
            "loss cannot be added. Set MODEL.HEADS.NAME to EmbeddingHead, or return a dict."
        )
    outputs["loss_mbj"] = torch.stack(losses).mean()
    _log(heads)
    return outputs


def _log(heads: list[MBJHead]) -> None:
    if not events._CURRENT_STORAGE_STACK:  # an own loop without fast-reid's EventStorage
        return
    reports = [head.report() for head in heads]
    for name in reports[0]:
        mean = sum(report[name] for report in reports) / len(reports)
        events.get_event_storage().put_scalar(name, mean, smoothing_hint=False)


def watch_registry() -> None:
    """Let META_ARCH_REGISTRY hand out architectures whose models collect. Runs once."""
    get = META_ARCH_REGISTRY.get
    if getattr(get, "collects_mbj", False):
        return

    def get_collecting(name: str):
        architecture = get(name)

        @functools.wraps(architecture, updated=())
        def build(cfg):
            model = architecture(cfg)
            _check_heads(model, cfg)
            if mbj_heads(model):
                collect_losses(model)
            return model

        return build

    get_collecting.collects_mbj = True
    META_ARCH_REGISTRY.get = get_collecting


def _check_heads(model: nn.Module, cfg) -> None:
    if any(isinstance(module, MBJHead) for module in model.modules()):
        return
    if "MBJLoss" in cfg.MODEL.LOSSES.NAME:
        raise ValueError(
            f"MODEL.LOSSES.NAME asks for MBJLoss, but MODEL.HEADS.NAME is {cfg.MODEL.HEADS.NAME}: set it to MBJHead"
        )
    if cfg.MODEL.HEADS.NAME == "MBJHead":
        raise ValueError(
            f"MODEL.HEADS.NAME is MBJHead, but MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} builds other heads"
        )
