"""Brings each head's memory loss into the model's loss dict, whatever the model does with its heads.

fast-reid's models build their loss dict from a fixed list of names. A forward hook on the model adds ours behind it:
the same for Baseline, MGN with its eight heads, MoCo and Distiller, and inside DistributedDataParallel.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from fastreid.config import CfgNode
from fastreid.engine.train_loop import SimpleTrainer
from fastreid.modeling.meta_arch import Baseline
from fastreid.modeling.meta_arch.mgn import MGN
from fastreid.utils import comm
from fastreid.utils.events import get_event_storage
from torch import Tensor, nn

from mbj_plugin.fastreid.head import MBJHead

# The names that a model's ``losses`` looks for; any other would be left out without a word.
KNOWN: dict[type, tuple[str, ...]] = {
    MGN: ("CrossEntropyLoss", "TripletLoss"),
    Baseline: ("CrossEntropyLoss", "TripletLoss", "CircleLoss", "Cosface"),
}


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
    _check_losses(model, cfg)
    if mbj_heads(model):
        collect_losses(model)
    return model


def _check_losses(model: nn.Module, cfg: CfgNode) -> None:
    """Raise ValueError for losses and heads that would train nothing without a word."""
    names, architecture, head = cfg.MODEL.LOSSES.NAME, cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.HEADS.NAME
    names = (names,) if isinstance(names, str) else names
    # A project's own model may know more.
    stock = type(model).__module__.startswith("fastreid.")
    known = next((KNOWN[kind] for kind in KNOWN if stock and isinstance(model, kind)), ())
    unknown = [name for name in names if name not in (*known, "MBJLoss")]
    if unknown and known:
        raise ValueError(
            f"MODEL.LOSSES.NAME has {unknown[0]!r}, which {type(model).__name__} does not know, so it would train "
            f"nothing: it takes {', '.join(known)}"
        )
    if not any(isinstance(module, MBJHead) for module in model.modules()):
        if "MBJLoss" in names:
            raise ValueError(f"MODEL.LOSSES.NAME asks for MBJLoss, but MODEL.HEADS.NAME is {head}: set it to MBJHead")
        if head == "MBJHead":
            raise ValueError(f"MODEL.HEADS.NAME is MBJHead, but MODEL.META_ARCHITECTURE {architecture} has other heads")
    elif architecture == "PartialBaseline":
        raise ValueError(
            "MODEL.HEADS.NAME is MBJHead, but MODEL.META_ARCHITECTURE PartialBaseline trains what DSRHead alone "
            "returns: set MODEL.HEADS.NAME to DSRHead, or META_ARCHITECTURE to Baseline"
        )
    elif set(names) == {"MBJLoss"}:
        raise ValueError(
            "MODEL.LOSSES.NAME has MBJLoss alone, so no batch loss would train the classifier: name one as well, "
            'such as ("CrossEntropyLoss", "MBJLoss"). MBJHead brings the memory loss whether or not it is named.'
        )
