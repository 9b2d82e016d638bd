"""What a run leaves: arguments, manifest, one line per epoch, results."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
import yaml
from timm import utils
from timm.models import safe_model_name

from mbj_plugin import __version__
from mbj_plugin.command_line import reason
from mbj_plugin.diagnostics.groups import group_errors
from mbj_plugin.files import drop_epochs, write
from mbj_plugin.timm.compat import go_on_saving
from mbj_plugin.timm.diagnostics import fit_columns
from mbj_plugin.timm.settings import from_args
from mbj_plugin.tools.trainer.data import LongTailSubset
from mbj_plugin.tools.trainer.dataset_summary import DataFacts

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

_logger = logging.getLogger("mbj_plugin")
# What tells that a folder holds a run.
RESULTS = ("*.pth.tar", "results.json")
# Folders that this process trains into, and what holds their locks.
_LOCKED: dict[Path, int] = {}


def experiment(args: Namespace) -> str:
    """Name of the run's folder, made up as timm does where none is given."""
    if not args.experiment:
        size = args.input_size[-1] if args.input_size else args.img_size or ""
        args.experiment = "-".join(
            filter(None, [time.strftime("%Y%m%d-%H%M%S"), safe_model_name(args.model), str(size)])
        )
    return args.experiment


def folder_of(args: Namespace) -> Path:
    """The run's folder."""
    return Path(args.output or "output/train") / experiment(args)


def check_free(args: Namespace) -> None:
    """Raise ValueError where the folder holds another run, whose checkpoints and curves would be mixed with this one's.

    Only the folder of the checkpoint that ``--resume`` names is gone on with.
    """
    folder = folder_of(args)
    if args.resume and Path(args.resume).resolve().parent == folder.resolve():
        return
    found = next((path.name for pattern in RESULTS for path in sorted(folder.glob(pattern))), None)
    if found is None:
        return
    last = folder / "last.pth.tar"
    go_on = f", or go on with that run by --resume {last}" if last.is_file() and not args.resume else ""
    raise ValueError(f"{folder} holds a run already ({found}): give this one another --experiment{go_on}")


def open_folder(args: Namespace, train_set: Any, first_epoch: int) -> Path:
    """The run's folder, with its arguments and the manifest of the training set; locked until the process ends."""
    folder = folder_of(args)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"cannot write to {folder} ({error.strerror}): give a writable folder by --output") from error
    _lock(folder)
    check_free(args)
    write(folder / "args.yaml", yaml.safe_dump({k: plain(v) for k, v in vars(args).items()}))
    if isinstance(train_set, LongTailSubset):
        write(folder / "manifest.json", json.dumps(train_set.manifest()))
    drop_epochs(folder / "summary.csv", first_epoch)
    return folder


def _lock(folder: Path) -> None:
    """Raise ValueError where another process writes to the folder. The system frees it with the process, killed too."""
    if fcntl is None:  # Windows
        return
    if folder.resolve() in _LOCKED:
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ValueError(f"another process is training into {folder}: give another --experiment, or wait") from None
    except OSError:  # a file system without locks
        os.close(handle)
    else:
        _LOCKED[folder.resolve()] = handle


def unlock(folder: Path) -> None:
    """The run is over: another may go on with it."""
    handle = _LOCKED.pop(folder.resolve(), None)
    if handle is not None:
        os.close(handle)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """What cannot be written, on a full disk say, as one line. The files that were there stay whole."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save raises the latter for what the system refuses
        cause = next((e for e in (error, error.__context__) if isinstance(e, OSError)), None)
        if cause is None and "writ" not in str(error):
            raise
        for name in ("tmp.pth.tar", "recovery_tmp.pth.tar"):  # half a checkpoint: of no use, and room for others
            with contextlib.suppress(OSError):
                (folder / name).unlink()
        last = folder / "last.pth.tar"
        go_on = f"then go on by --resume {last}" if last.is_file() else "then start again"
        why = os.strerror(cause.errno) if cause is not None and cause.errno else reason(error)[:200]
        raise ValueError(f"cannot write to {folder} ({why}), is the disk full? Make room, {go_on}") from error


def log_epoch(
    epoch: int,
    num_epochs: int,
    train_metrics: dict[str, float],
    columns: dict[str, float],
    metrics: dict[str, Any],
    errors: dict[str, float],
    lr: float,
    left: str,
    folder: Path,
    log_wandb: bool,
) -> None:
    """One line on the console, one row in timm's summary.csv, one step in Weights & Biases where asked for."""
    memory = f" (memory {train_metrics['loss_memory']:.3f})" if "loss_memory" in train_metrics else ""
    groups = " / ".join(f"{errors[name]:.1f}" for name in ("head", "medium", "tail") if name in errors)
    _logger.info(
        f"epoch {epoch + 1:>3}/{num_epochs}  lr {lr:.2e}  loss {train_metrics['loss']:.3f}{memory}  "
        f"error {errors['error']:.2f} %  head / medium / tail {groups}  {left}"
    )
    summary = folder / "summary.csv"
    # The trainer's own numbers come first, and stand where the diagnostics have the same ones.
    numbers = train_metrics | columns | train_metrics
    utils.update_summary(
        epoch,
        fit_columns(numbers, summary),
        {key: metrics[key] for key in ("loss", "top1", "top5")}
        | {f"{k}_error": v for k, v in errors.items() if k != "error"},
        filename=str(summary),
        lr=lr,
        write_header=not summary.exists() or summary.stat().st_size == 0,
        log_wandb=log_wandb,
    )


@contextlib.contextmanager
def wandb_run(args: Namespace) -> Iterator[bool]:
    """A run in Weights & Biases, where ``--log-wandb`` asks for one and the caller has not started one; whether to log.

    Raises:
        ValueError: where the package is missing.
    """
    if not args.log_wandb:
        yield False
        return
    try:
        import wandb
    except ImportError as error:
        raise ValueError("--log-wandb needs the package wandb: pip install wandb") from error
    if wandb.run is not None:
        yield True
        return
    with wandb.init(project=args.wandb_project, name=args.experiment, config=vars(args)):
        yield True


def make_saver(run: Any, folder: Path) -> utils.CheckpointSaver:
    """timm's saver of the checkpoints of a :class:`mbj_plugin.tools.trainer.train.Run`."""
    args = run.args
    saver = utils.CheckpointSaver(
        model=run.task.get_trainable_module(),
        optimizer=run.optimizer,
        args=Namespace(**{name: plain(value) for name, value in vars(args).items()}),
        amp_scaler=run.loss_scaler,
        checkpoint_dir=str(folder),
        recovery_dir=str(folder),
        decreasing=args.eval_metric == "loss",
        max_history=args.checkpoint_hist,
        task=run.task,
    )
    # Which checkpoints are the best is known of the folder that is written to alone.
    same_folder = args.resume and Path(args.resume).resolve().parent == folder.resolve()
    if same_folder:
        go_on_saving(saver, args.resume)
    return saver


def result(
    args: Namespace, facts: DataFacts, metrics: dict[str, Any], best: tuple[Any, Any], seconds: float
) -> dict[str, Any]:
    """What results.json holds.

    Args:
        args: of the run.
        facts: of its images.
        metrics: of :func:`mbj_plugin.tools.trainer.evaluate.validate`, after the last epoch.
        best: value and epoch of the best ``--eval-metric``; for information, it is chosen on what is reported.
        seconds: of the run.
    """
    images, wrong = np.asarray(metrics["images"]), np.asarray(metrics["wrong"])
    return {
        "method": "mbj" if args.mbj else "baseline",
        "errors": group_errors(images, wrong, facts.counts),
        "per_class_error": (100 * wrong / np.maximum(images, 1)).tolist(),
        **facts.state(),
        "best": {"metric": args.eval_metric, "value": best[0], "epoch": best[1]},
        "mbj": dataclasses.asdict(from_args(args)) if args.mbj else None,
        "settings": {k: plain(v) for k, v in vars(args).items()},
        "versions": {
            "mbj_plugin": __version__,
            "python": sys.version.split()[0],
            "timm": timm.__version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
        "seconds": round(seconds, 1),
    }


def plain(value: Any) -> Any:
    """The value in types that YAML, JSON and a weights-only checkpoint can hold."""
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return value if isinstance(value, str | int | float | bool | None) else str(value)
