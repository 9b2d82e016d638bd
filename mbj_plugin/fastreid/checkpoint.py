"""Memories in fast-reid's checkpoints.

They are buffers of the head, so that fast-reid saves and loads them. Its Checkpointer skips whatever differs in shape,
one tensor at a time; of a memory that would leave a half-loaded one, so here it is all or nothing. And a run that only
takes weights over, by MODEL.WEIGHTS, begins with an empty memory: labels of the old one may mean other people.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fastreid.utils.checkpoint import Checkpointer
from torch import Tensor, nn

from mbj_plugin.fastreid.collect import mbj_heads

logger = logging.getLogger("fastreid.mbj_plugin")
COUNTS = ".class_counts"
SAVED_MEMORY = re.compile(r"\.memories\.(feature|prototype)\.")


def memory_mismatch(model: nn.Module, saved: dict[str, Tensor]) -> str:
    """What of a saved model does not fit the memories of ``model``; empty where all does, or no memory was saved."""
    prefix, current = _prefix(saved), model.state_dict()
    # Not the class counts: a model that nobody has prepared lacks them, and a run's are in its classes.json.
    then = {name.removeprefix(prefix) for name in saved if SAVED_MEMORY.search(name) and not name.endswith(COUNTS)}
    keys = [name for name in _memory_keys(model) if not name.endswith(COUNTS)]
    now = set(keys)
    if not then or not now:
        return ""
    if then != now:
        name = min(then ^ now)
        return f"{name} is only in the {'checkpoint' if name in then else 'model'}: MEMORY or MOMENTUM has changed"
    for name in keys + _weight_keys(model):
        shape = tuple(saved[prefix + name].shape) if prefix + name in saved else None
        if shape not in (None, tuple(current[name].shape)):
            return f"{name} has shape {shape} in the checkpoint and {tuple(current[name].shape)} in the model"
    return ""


def keep_memories(model: nn.Module, saved: dict[str, Tensor]) -> bool:
    """Put the memories of ``model`` in the place of those of a saved model, so that loading it leaves them as they are.

    Returns:
        Whether a memory was saved.
    """
    prefix, current = _prefix(saved), model.state_dict()
    then = [name for name in saved if SAVED_MEMORY.search(name)]
    own = _memory_keys(model)
    if then and own:
        for name in then:
            del saved[name]
        saved.update({prefix + name: current[name] for name in own})
    return bool(then)


def _prefix(saved: dict[str, Tensor]) -> str:
    # Checkpointer takes it away as well: what DistributedDataParallel puts before every name.
    return "module." if all(name.startswith("module.") for name in saved) else ""


def _memory_keys(model: nn.Module) -> list[str]:
    prefixes = tuple(f"{name}.memories." for name in _head_names(model))
    return [name for name in model.state_dict() if name.startswith(prefixes)]


def _weight_keys(model: nn.Module) -> list[str]:
    # Memories hold labels: with another classifier they mean other classes, even where every shape fits.
    return [f"{name}.weight" for name in _head_names(model)]


def _head_names(model: nn.Module) -> list[str]:
    heads = set(mbj_heads(model))
    return [name for name, module in model.named_modules() if module in heads]


def load_model_checked(load_model: Callable, self: Checkpointer, checkpoint: Any) -> Any:
    """Checkpointer._load_model: an error on resume, an empty memory where only weights are loaded."""
    saved = checkpoint["model"]
    if getattr(self, "resumes_mbj", bool(self.checkpointables)):
        problem = memory_mismatch(self.model, saved)
        if problem:
            raise ValueError(
                f"cannot resume: {problem}. Set MODEL.MBJ (SIZE, MEMORY, MOMENTUM), MODEL.HEADS and the training set "
                "back to those of the checkpoint, or start anew in another OUTPUT_DIR with it as MODEL.WEIGHTS."
            )
    elif keep_memories(self.model, saved) and self.checkpointables and mbj_heads(self.model):
        logger.info("A new run: the memory of MODEL.WEIGHTS is left out, this one starts empty")
    return load_model(self, checkpoint)


def resume_or_load_checked(resume_or_load: Callable, self: Checkpointer, path: str, *, resume: bool = True) -> Any:
    """Checkpointer.resume_or_load."""
    with _going_on(self, resume and self.has_checkpoint()):
        return resume_or_load(self, path, resume=resume)


def load_checked(load: Callable, self: Checkpointer, path: str, checkpointables: Any = None) -> Any:
    """Checkpointer.load."""
    if hasattr(self, "resumes_mbj"):
        return load(self, path, checkpointables)
    # Who loads an optimizer goes on with a run. None is all that the Checkpointer has; [] is fast-reid's own way to say
    # that only the weights are wanted.
    with _going_on(self, bool(self.checkpointables if checkpointables is None else checkpointables)):
        return load(self, path, checkpointables)


@contextmanager
def _going_on(checkpointer: Checkpointer, resumes: bool) -> Iterator[None]:
    checkpointer.resumes_mbj = resumes
    try:
        yield
    finally:
        del checkpointer.resumes_mbj
