"""Everything private or bound to a version of timm that the plugin relies on: one function each, with its check.

Its decorator names timm's file and what is relied on there. What a timm to come has changed is an error that names both
and timm's version, where it is used. Public names (models, data, schedulers, `timm.task`) are imported where they are.
"""

from __future__ import annotations

import inspect
import re
import sys
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import timm
from timm import utils
from timm.task import ClassificationTask, TrainingTask
from timm.utils import CheckpointSaver
from timm.utils import cuda as timm_cuda

KNOWN = "1.0.27 to 1.0.31"
# Of timm's train.py: locals of the function that builds its task, and what is read of its arguments.
LOCALS = ("args", "loader_train")
ARGUMENTS = ("num_classes", "grad_accum_steps", "seed", "smoothing", "epochs")


class UpstreamChangedError(RuntimeError):
    """timm has changed under the plugin."""


#: Function to what of timm it relies on: a file, and what is there.
RELIES: dict[str, tuple[str, str]] = {}


def relies(upstream: str, what: str) -> Callable[[Callable], Callable]:
    """Register a function as the one place that relies on ``what`` of ``upstream``, a file of timm."""

    def register(function: Callable) -> Callable:
        RELIES[function.__name__] = (upstream, what)
        return function

    return register


def expect(condition: bool, name: str) -> None:
    """Raise where timm is not what the function ``name`` was written for."""
    if not condition:
        upstream, what = RELIES[name]
        raise UpstreamChangedError(
            f"timm {timm.__version__} has changed under mbj_plugin, which relies on {upstream}: {what}. Take timm "
            f"{KNOWN}, or report this"
        )


@relies("train.py", f"the function that builds the task has the locals {', '.join(LOCALS)}")
def training_run() -> tuple[Namespace, Any]:
    """Arguments and training loader of the script that is building its task.

    train.py hands none to the task, and keeps them as locals of the function that builds it.

    Raises:
        ValueError: in a script of another shape.
    """
    frame = inspect.currentframe()
    while frame is not None:
        args, train_loader = (frame.f_locals.get(name) for name in LOCALS)
        if isinstance(args, Namespace) and train_loader is not None:
            shape = hasattr(train_loader, "dataset") and all(hasattr(args, name) for name in ARGUMENTS)
            expect(shape, "training_run")
            return args, train_loader
        frame = frame.f_back
    # train.py itself is known by its own names; any other script is not what the module is for.
    expect(not hasattr(sys.modules.get("__main__"), "_parse_args"), "training_run")
    raise ValueError(
        "mbj_plugin.timm.enable is for timm's train.py, which has `args` and `loader_train` where it builds its task: "
        "in a script of your own, build MBJTask(model, MBJLoss(class_counts)) instead"
    )


@relies("task/task.py", "TrainingTask has no __new__, so that what a task's class makes can be chosen")
def make_tasks_by(new: Callable[..., Any]) -> None:
    """``new(cls, ...)`` makes every task. train.py has imported the classes before it imports us, so no name of theirs
    can be replaced."""
    expect("__new__" not in vars(TrainingTask) and issubclass(ClassificationTask, TrainingTask), "make_tasks_by")
    TrainingTask.__new__ = staticmethod(new)  # type: ignore[assignment]


@relies("utils/summary.py", "train.py calls utils.update_summary(epoch, train_metrics, eval_metrics, filename, ...)")
def replace_update_summary(make: Callable[[Any], Any]) -> Any:
    """``make(stock)`` takes the place of timm's function, and is returned."""
    stock = utils.update_summary
    names = ["epoch", "train_metrics", "eval_metrics", "filename", "lr", "write_header", "log_wandb"]
    expect(list(inspect.signature(stock).parameters) == names, "replace_update_summary")
    utils.update_summary = made = make(stock)
    return made


@relies("utils/clip_grad.py, utils/cuda.py", "train.py and NativeScaler call dispatch_clip_grad by their module's name")
def replace_clip(clip: Callable[..., None]) -> None:
    """``clip`` takes the place of timm's function; a second call changes nothing."""
    names = list(inspect.signature(utils.dispatch_clip_grad).parameters)
    expect(names == ["parameters", "value", "mode", "norm_type"], "replace_clip")
    expect(timm_cuda.dispatch_clip_grad is utils.dispatch_clip_grad, "replace_clip")
    utils.dispatch_clip_grad = timm_cuda.dispatch_clip_grad = clip


@relies("task/_helpers.py", "_load_train_checkpoint reads a checkpoint in whatever form timm has saved it")
def load_checkpoint(path: str) -> Any:
    """The content of a training checkpoint, on the CPU."""
    from timm.task import _helpers

    expect(hasattr(_helpers, "_load_train_checkpoint"), "load_checkpoint")
    return _helpers._load_train_checkpoint(path)


@relies("data/loader.py", "PrefetchLoader holds the DataLoader that it prepares images for as .loader")
def loader_inside(loader: Any) -> Any:
    """The DataLoader of a loader of timm's; itself where timm's prefetcher is off."""
    if type(loader).__name__ == "PrefetchLoader":
        expect(hasattr(loader, "loader"), "loader_inside")
    return getattr(loader, "loader", loader)


@relies("utils/checkpoint_saver.py", "from 1.0.31 on a saver finds the best checkpoints of a run again")
def go_on_saving(saver: CheckpointSaver, path: str) -> None:
    """Let a saver know the checkpoints that are in its folder; older timm begins its list anew."""
    known = tuple(int(part) for part in re.findall(r"\d+", timm.__version__)[:3])
    expect(known < (1, 0, 31) or hasattr(saver, "load_state_dict_from_checkpoint"), "go_on_saving")
    if hasattr(saver, "load_state_dict_from_checkpoint"):
        saver.load_state_dict_from_checkpoint(path)


@relies("task/task.py", "a task saves get_task_state() and loads it by load_task_state(), new in 1.0.27")
def check_task_state() -> None:
    """Before a task of ours is made: where timm would not save its memory, no run should begin."""
    names = ("get_task_state", "load_task_state", "get_checkpoint_state", "get_clip_parameters")
    expect(all(hasattr(TrainingTask, name) for name in names), "check_task_state")


@relies("loss/__init__.py", "create_classification_loss makes the criterion of a task that is given none")
def create_classification_loss(**arguments: Any) -> Any:
    """The criterion of such arguments, which train.py gives where timm has the function."""
    from timm import loss

    expect(hasattr(loss, "create_classification_loss"), "create_classification_loss")
    return loss.create_classification_loss(**arguments)
