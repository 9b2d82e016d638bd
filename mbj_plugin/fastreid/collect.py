"""Brings each head's memory loss into the model's loss dict, whatever the model does with its heads.

fast-reid's models build their loss dict from a fixed list of names. A forward hook on the model adds ours behind it:
the same for Baseline, MGN with its eight heads, MoCo and Distiller, and inside DistributedDataParallel.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from fastreid.config import CfgNode
from fastreid.engine.train_loop import SimpleTrainer
from fastreid.utils import comm
from fastreid.utils.events import get_event_storage
from torch import Tensor, nn

from mbj_plugin.fastreid.checks import check_loss_names
from mbj_plugin.fastreid.head import MBJHead


def mbj_heads(model: nn.Module) -> list[MBJHead]:
    """Heads of ``model`` that hold a memory."""
    return [module for module in model.modules() if isinstance(module, MBJHead) and module.memories]


def collect_losses(model: nn.Module) -> None:
    """Make ``model`` return ``loss_mbj`` in its loss dict: the mean over its heads, as MGN weights its eight.

    Models that fast-reid's build_model built have it already. A second call changes nothing.
    """
    if not getattr(model, "collects_mbj", False):
        vars(model)["collects_mbj"] = True
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
    if not outputs:
        raise ValueError(
            f"{type(model).__name__} returns no batch loss, so the memory loss would train alone: name one in "
            'MODEL.LOSSES.NAME, such as ("CrossEntropyLoss",)'
        )
    outputs["loss_mbj"] = torch.stack(losses).mean()
    return outputs


def write_losses(write: Callable, self: SimpleTrainer, losses: dict[str, Tensor], data_time: float) -> None:
    """SimpleTrainer._write_metrics: a loss that is alone gets its line too, as in a run with MBJ, and ``loss_mbj`` none
    before its start: what the writers show is a median, which zeros would hold down."""
    heads = mbj_heads(self.model)
    if heads and getattr(self, "iter", heads[0].start) < heads[0].start:  # a loop of steps alone has no ``iter``
        losses = {name: loss for name, loss in losses.items() if name != "loss_mbj"}
    write(self, losses, data_time)
    if len(losses) == 1 and comm.is_main_process():
        storage = get_event_storage()
        storage.put_scalar(*losses, storage.history("total_loss").latest())


def build_collecting(build: Callable, cfg: CfgNode) -> nn.Module:
    """build_model, whose models collect."""
    model = build(cfg)
    _check_heads(model, cfg)
    if mbj_heads(model):
        collect_losses(model)
    return model


def _check_heads(model: nn.Module, cfg) -> None:
    check_loss_names(model)
    names = cfg.MODEL.LOSSES.NAME
    names = [names] if isinstance(names, str) else names
    if any(isinstance(module, MBJHead) for module in model.modules()):
        if cfg.MODEL.META_ARCHITECTURE == "PartialBaseline":
            raise ValueError(
                "MODEL.HEADS.NAME is MBJHead, but MODEL.META_ARCHITECTURE PartialBaseline trains what DSRHead alone "
                "returns: set MODEL.HEADS.NAME to DSRHead, or META_ARCHITECTURE to Baseline"
            )
        if names and set(names) == {"MBJLoss"}:
            raise ValueError(
                "MODEL.LOSSES.NAME has MBJLoss alone, so no batch loss would train the classifier: name one as well, "
                'such as ("CrossEntropyLoss", "MBJLoss"). MBJHead brings the memory loss whether or not it is named.'
            )
        return
    if "MBJLoss" in names:
        raise ValueError(
            f"MODEL.LOSSES.NAME asks for MBJLoss, but MODEL.HEADS.NAME is {cfg.MODEL.HEADS.NAME}: set it to MBJHead"
        )
    if cfg.MODEL.HEADS.NAME == "MBJHead":
        raise ValueError(
            f"MODEL.HEADS.NAME is MBJHead, but MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} builds other heads"
        )
