"""Checkpoints that go on exactly: timm's, with the state of every random generator beside the model."""

from __future__ import annotations

import copy
import csv
import os
import random
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from timm.task import ClassificationTask, load_task_ema_checkpoint, resume_task_checkpoint
from timm.task._helpers import _load_train_checkpoint
from timm.utils import unwrap_model
from torch import nn

from mbj_plugin.diagnostics.monitor import Monitor
from mbj_plugin.timm.task import MBJTask


def _rng_state() -> dict[str, Any]:
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    assert isinstance(keys, np.ndarray)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": [torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "python": random.getstate(),
    }


def _set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))


class _ExactResume:
    """Adds to a task's checkpoint the generators of all ranks, as they were when :meth:`remember_rng` was called, and
    the diagnostics."""

    rng_states: list[dict[str, Any]] | None = None
    #: Diagnostics of the run, on the first rank, where they are on.
    monitor: Monitor | None = None

    def remember_rng(self) -> None:
        """Call on every rank, at the end of an epoch, before the checkpoint is written."""
        self.rng_states = [_rng_state()]
        if dist.is_available() and dist.is_initialized():
            gathered: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, self.rng_states[0])
            self.rng_states = gathered

    def get_checkpoint_state(self, ema: bool = False, unwrap_fn: Any = unwrap_model) -> dict[str, Any]:
        state = super().get_checkpoint_state(ema=ema, unwrap_fn=unwrap_fn)  # type: ignore[misc]
        if not ema:
            state["batch_loss"] = _batch_loss(self).state_dict()
            if self.monitor is not None:
                state["diagnostics"] = self.monitor.state_dict()
            if self.rng_states is not None:
                state["rng_states"] = self.rng_states
        return state


def _batch_loss(task: Any) -> nn.Module:
    """L_batch, which can have a state of its own (the step of LDAM's deferred re-weighting)."""
    loss = task.criterion.base if isinstance(task, MBJTask) else task.criterion
    assert isinstance(loss, nn.Module)  # make_batch_loss gives no bare function
    return loss


class ResumableTask(_ExactResume, ClassificationTask):
    """timm's task, for the baseline."""


class ResumableMBJTask(_ExactResume, MBJTask):
    """The task with a memory."""


def resume(task: Any, path: str, args: Any, optimizer: Any, loss_scaler: Any) -> int:
    """Load model, optimizer, memory and random generators of a checkpoint.

    Returns:
        The epoch to go on with.

    Raises:
        ValueError: for a file that is missing, unreadable, of other images, of another model or of another memory.
    """
    checkpoint = read_checkpoint(path)
    _check_model(checkpoint, task.get_eval_model(), args.model, path)
    for flag in ("dataset", "imbalance_ratio", *(["subset_seed"] if args.imbalance_ratio else [])):
        saved_value = getattr(checkpoint.get("args"), flag, getattr(args, flag))
        if saved_value != getattr(args, flag):
            raise ValueError(
                f"{path} was trained on other images: its {flag} is {saved_value!r}, this run's "
                f"{getattr(args, flag)!r}: set --{flag.replace('_', '-')} as it was"
            )
    saved_opt = getattr(checkpoint.get("args"), "opt", args.opt)
    if not args.no_resume_opt and saved_opt != args.opt:
        raise ValueError(
            f"{path} was trained by --opt {saved_opt}, this run asks for {args.opt}: set it back, or --no-resume-opt"
        )
    if isinstance(task, MBJTask) and "mbj" not in (checkpoint.get("task_state") or {}):
        # timm's Lookahead hands its state to the optimizer that it wraps.
        inner = getattr(optimizer, "_base_optimizer", optimizer)
        hook: Any = inner.register_load_state_dict_pre_hook(_add_batch_classifier(task))
    else:
        hook = nullcontext()
    with hook:
        epoch = resume_task_checkpoint(
            task,
            path,
            optimizer=None if args.no_resume_opt else optimizer,
            loss_scaler=None if args.no_resume_opt else loss_scaler,
            log_info=False,
        )
    own, saved = _batch_loss(task), checkpoint.get("batch_loss", {})
    if own.state_dict().keys() != saved.keys():
        raise ValueError(f"{path} was trained with another batch loss: set --loss as it was")
    own.load_state_dict(saved)
    if task.monitor is not None:
        task.monitor.load_state_dict(checkpoint.get("diagnostics", {}))
    states = checkpoint.get("rng_states") or []
    if args.rank < len(states):
        _set_rng_state(states[args.rank])
    return epoch or 0


def _add_batch_classifier(task: MBJTask) -> Any:
    """A hook that adds to the optimizer's state of a run without MBJ what the batch classifier needs: its twin's."""
    assert task.criterion.heads is not None
    memory_of = {id(batch): memory for memory, batch in task.criterion.heads.twins}

    def hook(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
        state: dict[int, Any] = {}
        groups, saved_id, number = [], {}, 0
        for group, saved_group in zip(optimizer.param_groups, saved["param_groups"], strict=True):
            rest, numbers = iter(saved_group["params"]), []
            for parameter in group["params"]:
                if id(parameter) not in memory_of:
                    saved_id[id(parameter)] = next(rest)
                source = saved_id[id(memory_of.get(id(parameter), parameter))]
                if source in saved["state"]:
                    state[number] = copy.deepcopy(saved["state"][source])
                numbers.append(number)
                number += 1
            groups.append({**saved_group, "params": numbers})
        return {**saved, "state": state, "param_groups": groups}

    return hook


def resume_ema(task: Any, path: str) -> None:
    """Load the averaged weights, which timm keeps beside the model's."""
    load_task_ema_checkpoint(task, path)


def read_checkpoint(path: str) -> dict[str, Any]:
    """The content of a training checkpoint.

    Raises:
        ValueError: for a file that is missing, truncated, or no training checkpoint.
    """
    if not os.path.isfile(path):
        raise ValueError(f"no checkpoint at {path}: --resume takes a file such as OUTPUT/EXPERIMENT/last.pth.tar")
    try:
        checkpoint = _load_train_checkpoint(path)
    except Exception as error:  # torch raises a different type for each way a file can be broken
        reason = str(error).split("\n")[0][:120]
        raise ValueError(
            f"cannot read the checkpoint {path}, it is no checkpoint or cut short ({reason}): "
            "resume from an older one in the same folder"
        ) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise ValueError(f"{path} is no training checkpoint (it has no state_dict): give one that train_timm wrote")
    return checkpoint


def _check_model(checkpoint: dict[str, Any], model: nn.Module, name: str, path: str) -> None:
    own, saved = unwrap_model(model).state_dict(), checkpoint["state_dict"]
    different = [key for key in own if key not in saved or saved[key].shape != own[key].shape]
    if different or len(own) != len(saved):
        key = different[0] if different else next(key for key in saved if key not in own)
        shapes = [tuple(d[key].shape) if key in d else "missing" for d in (saved, own)]
        raise ValueError(
            f"{path} is of another model: it holds {checkpoint.get('arch', 'an unnamed one')}, this run trains {name} "
            f"({key} is {shapes[0]} in the file and {shapes[1]} here): set --model and --num-classes as they were"
        )


def drop_rows_from(summary: Path, epoch: int) -> None:
    """Take the rows of ``epoch`` and later out of a summary.csv: the resumed run writes them again."""
    if not summary.is_file():
        return
    with summary.open(newline="") as file:
        rows = list(csv.reader(file))
    kept = [row for row in rows if row and (row[0] == "epoch" or int(row[0]) < epoch)]
    temporary = summary.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        csv.writer(file).writerows(kept)
    os.replace(temporary, summary)
