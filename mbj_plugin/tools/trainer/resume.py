"""Go on with a run: load its checkpoint, and refuse one of another run or with other settings."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from timm.task import resume_task_checkpoint

from mbj_plugin.command_line import UserError
from mbj_plugin.timm.settings import flag
from mbj_plugin.timm.task import MBJTask
from mbj_plugin.tools.trainer.checkpoint import batch_loss, read_checkpoint, set_rng_state
from mbj_plugin.tools.trainer.dataset_summary import DataFacts
from mbj_plugin.tools.trainer.flags import PLACES
from mbj_plugin.tools.trainer.run_folder import to_builtin

# What may be another: more epochs, and what the checkpoint's weights take the place of.
MAY_CHANGE = PLACES | {"epochs", "initial_checkpoint", "pretrained", "pretrained_path"}
# What a run writes into each checkpoint, beside what some runs have.
NEEDED = ("epoch", "optimizer", "args", "data", "start", "rng_states")


def check_settings(saved: Mapping[str, Any], args: Namespace, path: str) -> None:
    """Raise ValueError for the first setting that is another than that of the run that ``path`` is of."""
    here = vars(args)
    if saved.get("mbj") != args.mbj and "mbj" in saved:
        raise UserError(
            f"{path} is of a run {'with' if saved['mbj'] else 'without'} MBJ: {'add' if saved['mbj'] else 'leave out'} "
            "--mbj, or begin anew with its weights by --initial-checkpoint"
        )
    # The memory's kind before its eta and size, which follow from it.
    for name in sorted(
        saved.keys() & here.keys() - MAY_CHANGE, key=lambda name: (name in ("mbj_eta", "mbj_size"), name)
    ):
        if name.startswith("mbj_") and not args.mbj:
            continue
        before, now = to_builtin(saved[name]), to_builtin(here[name])
        if before != now:
            raise UserError(
                f"{path} was trained with {flag(name)} {before}, this command has {now}: set it as it was; only "
                "--epochs may grow"
            )


class Resumed:
    """A checkpoint whose state was loaded into task, optimizer and loss scaler. One of other images or with other
    settings is a ValueError."""

    def __init__(self, task: Any, args: Namespace, optimizer: Any, loss_scaler: Any, facts: DataFacts) -> None:
        self.path, self.args, self.task = args.resume, args, task
        self.checkpoint = checkpoint = read_checkpoint(self.path)
        if missing := [key for key in NEEDED if checkpoint.get(key) is None]:
            raise UserError(
                f"{self.path} has no {', '.join(missing)} to go on from: give its weights by --initial-checkpoint"
            )
        facts.check_same(checkpoint["data"], self.path)
        check_settings(vars(checkpoint["args"]), args, self.path)
        epoch = resume_task_checkpoint(task, self.path, optimizer=optimizer, loss_scaler=loss_scaler, log_info=False)
        assert epoch is not None and epoch > 0
        batch_loss(task).load_state_dict(checkpoint.get("batch_loss", {}))
        #: The epoch to go on with.
        self.epoch: int = epoch

    def set_random_state(self) -> None:
        """Last of all, so that the next epoch draws what it would have drawn."""
        states = self.checkpoint["rng_states"]
        if self.args.rank < len(states):
            set_rng_state(states[self.args.rank])

    def keep_start(self, start: float, iterations: int) -> tuple[float, str | None]:
        """What had started stays started; what had not starts by this run's schedule, which more epochs may stretch.

        Returns:
            The epoch of the start, and a line where it is another than the checkpoint's or this schedule's (``start``).
        """
        before, line, at = self.checkpoint["start"], None, start
        for part in _starting(self.task):
            if int(part.step) > before["calls"]:
                part.start, at = before["calls"], before["epoch"]
                if start != at:
                    line = f"What started at epoch {at:g} stays on; this schedule alone would start it at {start:g}."
            else:
                part.start = round(start * iterations)
                if before["epoch"] != start:
                    line = f"By this run's schedule the start moves from epoch {before['epoch']:g} to {start:g}."
        return at, line

    def resume_schedule(self, scheduler: Any, updates_per_epoch: int) -> None:
        """Bring a new scheduler to where the run was."""
        if self.args.sched_on_updates:
            scheduler.step_update(self.epoch * updates_per_epoch)
        else:
            scheduler.step(self.epoch)


def saved_start(task: Any, epoch: float) -> dict[str, Any]:
    """When what starts late starts, for the checkpoint: as an epoch, and in calls."""
    return {"epoch": float(epoch), "calls": next((int(part.start) for part in _starting(task)), 0)}


def _starting(task: Any) -> list[Any]:
    """The losses of a task that start late, and count their calls."""
    parts: list[Any] = list(task.criterion.memories.values()) if isinstance(task, MBJTask) else []
    return parts + [loss for loss in [batch_loss(task)] if hasattr(loss, "start")]
