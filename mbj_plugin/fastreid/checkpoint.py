"""Memories in fast-reid's checkpoints.

They are buffers of the head, so that fast-reid saves and loads them. Its Checkpointer skips whatever differs in shape,
one tensor at a time; of a memory that would leave a half-loaded one, so here it is all or nothing.
"""

from __future__ import annotations

import functools
import logging

import torch
from fastreid.utils.checkpoint import Checkpointer
from torch import Tensor, nn

from mbj_plugin.fastreid.collect import mbj_heads

logger = logging.getLogger("fastreid.mbj_plugin")


def memory_mismatch(model: nn.Module, saved: dict[str, Tensor]) -> str:
    """What of a saved model does not fit the memories of ``model``; empty where all does, or no memory was saved."""
    if not any(".memories." in name for name in saved):
        return ""
    current = model.state_dict()
    for name in _memory_keys(model) + _weight_keys(model):
        key = next((k for k in (name, f"module.{name}") if k in saved), None)
        if key is not None and saved[key].shape != current[name].shape:
            then, now = tuple(saved[key].shape), tuple(current[name].shape)
            return f"{name} has shape {then} in the checkpoint and {now} in the model"
    return ""


def drop_memories(model: nn.Module, saved: dict[str, Tensor]) -> None:
    """Take everything that belongs to a memory of ``model`` out of a saved model, in place."""
    for name in _memory_keys(model):
        saved.pop(name, None)
        saved.pop(f"module.{name}", None)


def _memory_keys(model: nn.Module) -> list[str]:
    prefixes = tuple(f"{name}.memories." for name in _head_names(model))
    return [name for name in model.state_dict() if name.startswith(prefixes)] if prefixes else []


def _weight_keys(model: nn.Module) -> list[str]:
    # Memories hold labels: with another classifier they mean other classes, even where every shape fits.
    return [f"{name}.weight" for name in _head_names(model)]


def _head_names(model: nn.Module) -> list[str]:
    heads = set(mbj_heads(model))
    return [name for name, module in model.named_modules() if module in heads]


def watch_checkpoints() -> None:
    """Let Checkpointer check memories: an error on resume, an empty memory where only weights are loaded. Runs once."""
    load_model, resume_or_load = Checkpointer._load_model, Checkpointer.resume_or_load
    if getattr(load_model, "checks_mbj", False):
        return

    @functools.wraps(load_model)
    def load_model_checked(self, checkpoint):
        saved = checkpoint["model"]
        problem = memory_mismatch(self.model, {k: v for k, v in saved.items() if isinstance(v, torch.Tensor)})
        if problem and getattr(self, "resumes_mbj", False):
            raise ValueError(
                f"cannot resume: {problem}. Set MODEL.MBJ (SIZE, MEMORY, MOMENTUM), MODEL.HEADS and the training set "
                "back to those of the checkpoint, or start anew in another OUTPUT_DIR with it as MODEL.WEIGHTS."
            )
        if problem:
            logger.warning("The memory starts empty: %s", problem)
            drop_memories(self.model, saved)
        return load_model(self, checkpoint)

    @functools.wraps(resume_or_load)
    def resume_or_load_checked(self, path, *, resume=True):
        self.resumes_mbj = resume and self.has_checkpoint()
        try:
            return resume_or_load(self, path, resume=resume)
        finally:
            self.resumes_mbj = False

    load_model_checked.checks_mbj = True
    Checkpointer._load_model = load_model_checked
    Checkpointer.resume_or_load = resume_or_load_checked
