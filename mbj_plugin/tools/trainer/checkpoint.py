"""Checkpoints that go on exactly: timm's, with the state of every random generator beside the model."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from timm.task import ClassificationTask
from timm.utils import unwrap_model
from torch import nn

from mbj_plugin.command_line import UserError, reason
from mbj_plugin.sampling import rank_and_world
from mbj_plugin.timm.compat import UpstreamChangedError, load_checkpoint
from mbj_plugin.timm.task import MBJTask


def _rng_state() -> dict[str, Any]:
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": (name, np.asarray(keys).tolist(), *rest),  # what a weights-only checkpoint can hold
        "python": random.getstate(),
    }


def set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])


class _ExactResume:
    """Adds to a task's checkpoint the generators of all ranks, as they were when :meth:`remember_rng` was called."""

    rng_states: list[dict[str, Any]] | None = None
    #: What else of the run goes into the checkpoint, when it is written.
    run_state: Callable[[], dict[str, Any]] = dict

    def remember_rng(self) -> None:
        """Call on every rank, at the end of an epoch, before the checkpoint is written."""
        self.rng_states = [_rng_state()]
        _, ranks = rank_and_world()
        if ranks > 1:
            gathered: list[Any] = [None] * ranks
            dist.all_gather_object(gathered, self.rng_states[0])
            self.rng_states = gathered

    def get_checkpoint_state(self, ema: bool = False, unwrap_fn: Any = unwrap_model) -> dict[str, Any]:
        state = super().get_checkpoint_state(ema=ema, unwrap_fn=unwrap_fn)  # type: ignore[misc]
        if not ema:
            state["batch_loss"] = batch_loss(self).state_dict()
            state |= self.run_state()
            if self.rng_states is not None:
                state["rng_states"] = self.rng_states
        return state


def batch_loss(task: Any) -> nn.Module:
    """L_batch of a task, which can have a state of its own (the step of LDAM's deferred re-weighting)."""
    loss = task.criterion.base if isinstance(task, MBJTask) else task.criterion
    assert isinstance(loss, nn.Module)  # make_batch_loss gives no bare function
    return loss


class ResumableTask(_ExactResume, ClassificationTask):
    """timm's task, for the baseline."""


class ResumableMBJTask(_ExactResume, MBJTask):
    """The task with a memory."""


@contextmanager
def undamaged(path: str) -> Iterator[None]:
    """What stumbles over the content of a checkpoint, on a hand-edited one say, as one line."""
    try:
        yield
    except (UserError, UpstreamChangedError):
        raise
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {reason(error)[:120]}"
        raise ValueError(f"{path} is damaged ({why}): resume from an older one in the same folder") from error


def read_checkpoint(path: str) -> dict[str, Any]:
    """The content of a training checkpoint."""
    if not os.path.isfile(path):
        raise UserError(f"no checkpoint at {path}: --resume takes a file such as OUTPUT/EXPERIMENT/last.pth.tar")
    try:
        checkpoint = load_checkpoint(path)
    except UpstreamChangedError:
        raise
    except Exception as error:  # torch raises a different type for each way a file can be broken
        raise UserError(
            f"cannot read the checkpoint {path}, it is no checkpoint or cut short ({reason(error)[:120]}): "
            "resume from an older one in the same folder"
        ) from error
    checkpoint = checkpoint if isinstance(checkpoint, dict) else {}
    needed = ["state_dict"] + ["task_state"] * bool(getattr(checkpoint.get("args"), "mbj", False))
    if missing := [key for key in needed if not isinstance(checkpoint.get(key), dict)]:
        raise UserError(f"{path} is no training checkpoint (it has no {missing[0]}): give one that mbj train wrote")
    return checkpoint
