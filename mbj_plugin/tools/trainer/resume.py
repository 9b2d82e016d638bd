"""Go on with a run: load its checkpoint, refuse one of another run, and say what is set otherwise than before."""

from __future__ import annotations

import copy
from argparse import Namespace
from contextlib import nullcontext
from typing import Any

import torch
from timm.task import resume_task_checkpoint
from timm.utils import unwrap_model
from torch import nn

from mbj_plugin.timm.compat import optimizer_inside, plateau_inside
from mbj_plugin.timm.task import MBJTask
from mbj_plugin.tools.trainer.checkpoint import batch_loss, read_checkpoint, set_rng_state
from mbj_plugin.tools.trainer.dataset_summary import DataFacts
from mbj_plugin.tools.trainer.flags import PLACES
from mbj_plugin.tools.trainer.run_folder import plain

# Flags that must be as they were: of what is learnt from, and of how the best checkpoint is chosen.
SAME = ("dataset", "imbalance_ratio", "subset_seed", "eval_metric", "loss")
# What the checkpoint's weights take the place of.
WEIGHTS = {"initial_checkpoint", "pretrained", "pretrained_path"}


class Resumed:
    """A checkpoint whose state was loaded.

    Args:
        task: gets the weights, the memory and the state of the batch loss.
        args: of the run that goes on.
        optimizer: gets its state, unless ``--no-resume-opt``.
        loss_scaler: the same.
        facts: of this run's images.

    Raises:
        ValueError: for a file that is missing, unreadable, of other images, of another model or of another memory.
    """

    def __init__(self, task: Any, args: Namespace, optimizer: Any, loss_scaler: Any, facts: DataFacts) -> None:
        self.path, self.args, self.task = args.resume, args, task
        self.checkpoint = checkpoint = read_checkpoint(self.path)
        self.saved_args = vars(checkpoint["args"]) if isinstance(checkpoint.get("args"), Namespace) else {}
        self._check_flags()
        facts.check_same(checkpoint.get("data", {}), self.path)
        _check_model(checkpoint, task.get_eval_model(), args.model, self.path)
        with _adding_batch_classifier(task, checkpoint, optimizer):
            epoch = resume_task_checkpoint(
                task,
                self.path,
                optimizer=None if args.no_resume_opt else optimizer,
                loss_scaler=None if args.no_resume_opt else loss_scaler,
                log_info=False,
            )
        own, saved = batch_loss(task), checkpoint.get("batch_loss", {})
        if own.state_dict().keys() != saved.keys():
            raise ValueError(f"{self.path} was trained with another batch loss: set --loss as it was")
        own.load_state_dict(saved)
        if task.monitor is not None:
            task.monitor.load_state_dict(checkpoint.get("diagnostics", {}))
        #: The epoch to go on with.
        self.epoch: int = epoch or 0
        #: The learning rates that the checkpoint was written with; a new schedule sets them anew.
        self.rates = [group["lr"] for group in optimizer.param_groups]

    def set_random_state(self) -> None:
        """Last of all, so that the next epoch draws what it would have drawn."""
        states = self.checkpoint.get("rng_states") or []
        if self.args.rank < len(states):
            set_rng_state(states[self.args.rank])

    def _check_flags(self) -> None:
        args = vars(self.args)
        for flag in SAME:
            saved, here = self.saved_args.get(flag, args[flag]), args[flag]
            if saved == here or (flag == "subset_seed" and not args["imbalance_ratio"]):
                continue
            what = "was trained on other images" if flag in SAME[:3] else "is of another run"
            raise ValueError(
                f"{self.path} {what}: its {flag} is {saved!r}, this run's {here!r}: set --{flag.replace('_', '-')} as "
                "it was"
            )
        saved = self.saved_args.get("opt", self.args.opt)
        if not self.args.no_resume_opt and saved != self.args.opt:
            raise ValueError(
                f"{self.path} was trained by --opt {saved}, this run asks for {self.args.opt}: set it back, or "
                "--no-resume-opt"
            )

    def keep_start(self, start: float, iterations: int) -> tuple[float, str | None]:
        """What had started stays started; what had not starts by this run's schedule.

        Args:
            start: epoch at which the memory loss, or the re-weighting of the batch loss, starts by this schedule.
            iterations: of an epoch.

        Returns:
            The epoch of the start, and a line where it is another than the checkpoint's or this schedule's.
        """
        before, line, at = self.checkpoint.get("start") or {}, None, start
        for part in _starting(self.task):
            # Counted in calls, from the first one of this memory on: it can be younger than the run.
            done = int(part.step)
            if before and done > before["calls"]:
                part.start, at = before["calls"], before["epoch"]
                if start != at:
                    line = (
                        f"What started at epoch {at:g} stays on; this run's settings alone would start it at {start:g}."
                    )
            else:
                part.start = max(0, done + round(start * iterations) - self.epoch * iterations)
                if before and before["epoch"] != start:
                    line = f"By this run's schedule the start moves from epoch {before['epoch']:g} to {start:g}."
        return at, line

    def changes(self) -> str | None:
        """A line on the settings that are not those of the checkpoint."""
        args = vars(self.args)
        names = sorted(self.saved_args.keys() & args.keys() - PLACES - WEIGHTS)
        changed = [
            f"--{name.replace('_', '-')} {self.saved_args[name]} -> {args[name]}"
            for name in names
            if plain(self.saved_args[name]) != plain(args[name])
        ]
        return f"Resumed after {self.epoch} epochs with other settings: {', '.join(changed)}." if changed else None

    def resume_schedule(self, scheduler: Any, updates_per_epoch: int) -> None:
        """Bring a new scheduler to where the run was."""
        if self.epoch == 0:
            return
        if self.args.sched_on_updates:
            scheduler.step_update(self.epoch * updates_per_epoch)
            return
        saved = self.checkpoint.get("plateau")
        inner = plateau_inside(scheduler)
        if saved and inner is not None and not self.args.no_resume_opt:
            # The only schedule that is no function of the epoch: as it was, then the step that followed the checkpoint.
            inner.__dict__.update(saved["progress"])
            scheduler.restore_lr = saved["restore_lr"]
            for group, rate in zip(scheduler.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate
        scheduler.step(self.epoch, self.checkpoint.get("metric"))


def _adding_batch_classifier(task: Any, checkpoint: dict[str, Any], optimizer: Any) -> Any:
    """A context in which the optimizer's state of a run without MBJ loads into one with a batch classifier, which gets
    what its twin has."""
    if not isinstance(task, MBJTask) or "mbj" in (checkpoint.get("task_state") or {}):
        return nullcontext()
    assert task.criterion.heads is not None
    memory_of = {id(batch): memory for memory, batch in task.criterion.heads.parameter_pairs}

    def add(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
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

    return optimizer_inside(optimizer).register_load_state_dict_pre_hook(add)


def saved_start(task: Any, epoch: float) -> dict[str, Any]:
    """When what starts late starts, for the checkpoint: as an epoch, and in calls."""
    return {"epoch": float(epoch), "calls": next((int(part.start) for part in _starting(task)), 0)}


def _starting(task: Any) -> list[Any]:
    """The losses of a task that start late, and count their calls."""
    parts: list[Any] = list(task.criterion.memories.values()) if isinstance(task, MBJTask) else []
    return parts + [loss for loss in [batch_loss(task)] if hasattr(loss, "start")]


def plateau_state(scheduler: Any) -> dict[str, Any] | None:
    """What ``--sched plateau`` has seen, which timm does not save; None for every other schedule."""
    inner = plateau_inside(scheduler)
    if inner is None:
        return None
    names = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")
    return {"progress": {name: getattr(inner, name) for name in names}, "restore_lr": scheduler.restore_lr}


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
