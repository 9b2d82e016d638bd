"""What a run leaves: arguments, manifest, one line per epoch, results."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import sys
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
from tqdm import tqdm

from mbj_plugin import __version__
from mbj_plugin.diagnostics import memories_report
from mbj_plugin.files import lock, unlock, write
from mbj_plugin.timm.compat import go_on_saving
from mbj_plugin.timm.settings import from_args
from mbj_plugin.tools.files import drop_epochs, writing
from mbj_plugin.tools.trainer.checkpoint import undamaged
from mbj_plugin.tools.trainer.data import LongTailSubset
from mbj_plugin.tools.trainer.evaluate import Metrics, headline
from mbj_plugin.tools.trainer.evaluate import errors as class_errors

_logger = logging.getLogger("mbj_plugin")
# What tells that a folder holds a run; half a first checkpoint, of a run that was killed, does not.
RUN_FILES = ("last.pth.tar", "checkpoint-*.pth.tar", "model_best.pth.tar", "results.json")
HALF = "tmp.pth.tar"
# Metrics of which less is better.
DECREASING = ("loss", "class_error")
# Classifiers in the line of an epoch.
NAMES = {"batch": "batch", "batch_adjusted": "adjusted", "memory": "MBJ"}


def experiment(args: Namespace) -> str:
    """Name of the run's folder, made up as timm does where none is given."""
    if not args.experiment:
        size = args.input_size[-1] if args.input_size else args.img_size or ""
        args.experiment = "-".join(
            filter(None, [time.strftime("%Y%m%d-%H%M%S"), safe_model_name(args.model), str(size)])
        )
    return args.experiment


def folder_of(args: Namespace) -> Path:
    """The run's folder: that of the checkpoint that it goes on from, or a new one."""
    return Path(args.resume).parent if args.resume else Path(args.output or "output/train") / experiment(args)


def check_folder(args: Namespace) -> None:
    """Raise ValueError where the folder holds another run, whose checkpoints and curves would be mixed with this one's,
    or where a checkpoint is to go on in another folder than its own."""
    folder = folder_of(args)
    if args.data_dir:
        data, whole = Path(args.data_dir).resolve(), folder.resolve()
        splits = (data / args.train_split, data / args.val_split)
        if whole == data or any(whole.is_relative_to(split) for split in splits):
            raise ValueError(f"the run's folder {folder} is a folder of the images: set another --output")
    if args.resume:
        if not Path(args.resume).is_file():
            raise ValueError(f"no checkpoint at {args.resume}: --resume takes a file such as RUN/last.pth.tar")
        named = Path(args.output or "output/train", args.experiment) if args.experiment else folder
        if named.resolve() != folder.resolve():
            raise ValueError(f"a resumed run goes on in its own folder {folder}: leave out --experiment and --output")
        return
    found = next((path.name for pattern in RUN_FILES for path in sorted(folder.glob(pattern))), None)
    if found is not None:
        last = folder / "last.pth.tar"
        go_on = f", or go on with that run by --resume {last}" if last.is_file() else ""
        raise ValueError(f"{folder} holds a run already ({found}): give this one another --experiment{go_on}")


@contextlib.contextmanager
def open_folder(args: Namespace, train_set: Any, first_epoch: int) -> Iterator[Path]:
    """The run's folder, with its arguments and the manifest of the training set; inside, no other process trains into
    it. The system frees it with the process, killed too."""
    folder = folder_of(args)
    with writing(folder, "give another --output"):
        folder.mkdir(parents=True, exist_ok=True)
    if not lock(folder):
        raise ValueError(f"another process is training into {folder}: give another --experiment, or wait")
    try:
        check_folder(args)
        with writing_run(folder):
            write(folder / "args.yaml", yaml.safe_dump({k: to_builtin(v) for k, v in vars(args).items()}))
            if isinstance(train_set, LongTailSubset):
                write(folder / "manifest.json", json.dumps(train_set.manifest()))
            drop_epochs(folder / "summary.csv", first_epoch)
        yield folder
    finally:
        unlock(folder)


@contextlib.contextmanager
def writing_run(folder: Path) -> Iterator[None]:
    """:func:`mbj_plugin.tools.files.writing` into a run's folder: half a checkpoint goes, the last whole one stays."""
    last = folder / "last.pth.tar"
    way_out = f"make room, then go on by --resume {last}" if last.is_file() else "make room, or give another --output"
    try:
        with writing(folder, way_out):
            yield
    finally:
        with contextlib.suppress(OSError):
            (folder / HALF).unlink()


def log_epoch(
    run: Any,
    epoch: int,
    train_metrics: dict[str, float],
    metrics: dict[str, Metrics],
    folder: Path,
    log_wandb: bool,
    seconds_left: float,
) -> None:
    """One line on the console, one row in timm's summary.csv, one step in Weights & Biases where asked for.

    Epochs are counted from 0, as in summary.csv and the checkpoints' names, which are timm's.
    """
    own = metrics[run.choice]
    key = headline(own["images"], run.args.eval_metric)
    errors = {name: class_errors(each, run.data.counts) for name, each in metrics.items()}
    own_errors = errors[run.choice]
    lr = float(np.mean([group["lr"] for group in run.optimizer.param_groups]))
    memory = f" (memory {train_metrics['loss_memory']:.3f})" if "loss_memory" in train_metrics else ""
    said = "  ".join(f"{NAMES[name]} {each[key]:.2f}" for name, each in errors.items())
    groups = " / ".join(f"{own_errors[name]:.1f}" for name in ("head", "medium", "tail") if name in own_errors)
    left = tqdm.format_interval(round(seconds_left))
    _logger.info(
        f"epoch {epoch:>3}/{run.num_epochs - 1}  lr {lr:.2e}  loss {train_metrics['loss']:.3f}{memory}  "
        f"{key.replace('_', ' ')} %: {said}  head / medium / tail {groups}  {left} left"
    )
    summary = folder / "summary.csv"
    held = memories_report([run.task.criterion.memories], run.data.counts) if run.args.mbj else {}
    evaluated = {name: own[name] for name in ("loss", "top1", "top5", "class_error")}
    evaluated |= {f"{k}_error": v for k, v in own_errors.items() if not k.endswith("error")}
    utils.update_summary(
        epoch,
        train_metrics | held,
        evaluated | {f"{name}_error": each["error"] for name, each in errors.items()},
        filename=str(summary),
        lr=lr,
        write_header=not summary.exists() or summary.stat().st_size == 0,
        log_wandb=log_wandb,
    )


@contextlib.contextmanager
def wandb_run(args: Namespace) -> Iterator[bool]:
    """A run in Weights & Biases, if ``--log-wandb`` asks for one and the caller has not started one; whether to log."""
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
    """timm's saver of the checkpoints of a :class:`mbj_plugin.tools.trainer.train.TrainingRun`."""
    args = run.args
    saver = utils.CheckpointSaver(
        model=run.task.get_trainable_module(),
        optimizer=run.optimizer,
        args=Namespace(**{name: to_builtin(value) for name, value in vars(args).items()}),
        amp_scaler=run.loss_scaler,
        checkpoint_dir=str(folder),
        recovery_dir=str(folder),
        decreasing=args.eval_metric in DECREASING,
        max_history=args.checkpoint_hist,
        task=run.task,
    )
    if args.resume:  # which checkpoints are the best
        with undamaged(args.resume):
            go_on_saving(saver, args.resume)
    return saver


def result(
    run: Any, metrics: dict[str, Metrics], plain: dict[str, Metrics], best: tuple[Any, Any], seconds: float
) -> dict[str, Any]:
    """What results.json holds. ``plain`` has the metrics of the model that is not averaged, where the average is too
    young; ``best`` is for information, as it is chosen on what is reported."""
    args = run.args

    def of(each: Metrics) -> dict[str, Any]:
        pairs = zip(each["wrong"], each["images"], strict=True)
        by_class = [100 * wrong / images if images else None for wrong, images in pairs]  # JSON has no NaN
        return {"errors": class_errors(each, run.facts.counts), "per_class_error": by_class}

    return {
        "method": "mbj" if args.mbj else "baseline",
        **of(metrics[run.choice]),
        "headline": headline(metrics[run.choice]["images"], args.eval_metric),
        "classifiers": {name: of(each) for name, each in metrics.items()},
        **({"not_averaged": {name: of(each) for name, each in plain.items()}} if plain else {}),
        **run.facts.state(),
        "best": {"metric": args.eval_metric, "value": best[0], "epoch": best[1]},
        "mbj": dataclasses.asdict(from_args(args)) if args.mbj else None,
        "settings": {k: to_builtin(v) for k, v in vars(args).items()},
        "versions": {
            "mbj_plugin": __version__,
            "python": sys.version.split()[0],
            "timm": timm.__version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
        "seconds": round(seconds, 1),
    }


def to_builtin(value: Any) -> Any:
    """The value in types that YAML, JSON and a weights-only checkpoint can hold."""
    if isinstance(value, list | tuple):
        return [to_builtin(v) for v in value]
    if isinstance(value, dict):
        return {k: to_builtin(v) for k, v in value.items()}
    return value if isinstance(value, str | int | float | bool | None) else str(value)
