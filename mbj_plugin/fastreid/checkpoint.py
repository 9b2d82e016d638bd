"""Memories in fast-reid's checkpoints.

They are buffers of the head, so that fast-reid saves and loads them. Its Checkpointer skips whatever differs in shape,
one tensor at a time; of a memory that would leave a half-loaded one, so here it is all or nothing. And a run that only
takes weights over, by MODEL.WEIGHTS, begins with an empty memory: labels of the old one may mean other people.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from fastreid.utils.checkpoint import Checkpointer
from torch import Tensor

logger = logging.getLogger("fastreid.mbj_plugin")
SAVED_MEMORY = re.compile(r"\.memories\.(feature|prototype)\.")


def memory_mismatch(saved: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """What of a saved model does not fit the memories of a model's own state; empty where all does."""
    # Not the class counts: a model that nobody has prepared lacks them, and a run's are in its classes.json.
    then, now = (
        [name for name in state if SAVED_MEMORY.search(name) and not name.endswith(".class_counts")]
        for state in (saved, own)
    )
    if different := {*then} ^ {*now}:
        name = min(different)
        return f"{name} is only in the {'checkpoint' if name in then else 'model'}: MEMORY or MOMENTUM has changed"
    # Memories hold labels: with another classifier they mean other classes, even where every shape fits.
    for name in [*now, *(name.partition(".memories.")[0] + ".weight" for name in now)]:
        shapes = [tuple(state[name].shape) for state in (saved, own) if name in state]
        if len(set(shapes)) > 1:
            return f"{name} has shape {shapes[0]} in the checkpoint and {shapes[1]} in the model"
    return ""


def load_noted(load: Callable, self: Checkpointer, path: str, checkpointables: Any = None) -> Any:
    """Checkpointer.load: who loads an optimizer as well goes on with a run."""
    # None is all that the Checkpointer has; [] is fast-reid's own way to say that only the weights are wanted.
    self.goes_on = bool(self.checkpointables if checkpointables is None else checkpointables)
    return load(self, path, checkpointables)


def load_model_checked(load_model: Callable, self: Checkpointer, checkpoint: Any) -> Any:
    """Checkpointer._load_model: an error on resume, an empty memory where only weights are loaded."""
    saved, own = checkpoint["model"], self.model.state_dict()
    if all(name.startswith("module.") for name in saved):  # of DistributedDataParallel; Checkpointer does the same
        checkpoint["model"] = saved = {name.removeprefix("module."): value for name, value in saved.items()}
    then, now = ([name for name in state if SAVED_MEMORY.search(name)] for state in (saved, own))
    if then and now and getattr(self, "goes_on", bool(self.checkpointables)):
        problem = memory_mismatch(saved, own)
        if problem:
            raise ValueError(
                f"cannot resume: {problem}. Set MODEL.MBJ (SIZE, MEMORY, MOMENTUM), MODEL.HEADS and the training set "
                "back to those of the checkpoint, or start anew in another OUTPUT_DIR with it as MODEL.WEIGHTS."
            )
    elif then and now:
        for name in then:
            del saved[name]
        saved.update({name: own[name] for name in now})
        if self.checkpointables:
            logger.info("A new run: the memory of MODEL.WEIGHTS is left out, this one starts empty")
    return load_model(self, checkpoint)
