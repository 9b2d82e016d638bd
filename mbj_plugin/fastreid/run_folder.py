"""What a run leaves in OUTPUT_DIR is not written over: not by another run, a second process, or other classes."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastreid.utils import comm

from fastreid_today.config import check_rules
from mbj_plugin.files import lock, write

logger = logging.getLogger("fastreid.mbj_plugin")
CLASSES = "classes.json"


def setup_checked(setup: Callable, cfg: Any, args: Any) -> Any:
    """default_setup, which writes config.yaml: the folder must be free for what the arguments ask for."""
    folder, evaluates = Path(cfg.OUTPUT_DIR), getattr(args, "eval_only", False)
    config = folder / "config.yaml"
    of_the_run = config.read_text() if evaluates and config.is_file() else None
    if not evaluates:
        claim(cfg, getattr(args, "resume", False))
    setup(cfg, args)
    if of_the_run is not None and comm.is_main_process():
        write(config, of_the_run)


def claim(cfg: Any, resumes: bool) -> None:
    """
    Raises:
        ValueError: where OUTPUT_DIR holds a run that is not gone on with, or another process trains into it.
    """
    folder = Path(cfg.OUTPUT_DIR)
    if not resumes and (folder / "last_checkpoint").is_file():
        raise ValueError(
            f"OUTPUT_DIR {folder} holds a run already: go on with it by --resume, or give this one another OUTPUT_DIR"
        )
    if comm.is_main_process():
        check_rules(cfg, "engine.defaults:default_setup")
        if not lock(folder):
            raise ValueError(f"another process trains into OUTPUT_DIR {folder}: give another, or wait")


def begin(trainer: Any, start_epoch: int) -> None:
    """Before a DefaultTrainer trains: its folder is its own, and its classes are those that it began with.

    Raises:
        ValueError: as :func:`claim`, and where a run goes on with other classes or class sizes.
    """
    cfg: Any = getattr(trainer, "cfg", None)
    dataset: Any = getattr(getattr(trainer, "data_loader", None), "dataset", None)
    if not getattr(cfg, "OUTPUT_DIR", ""):
        return
    folder = Path(cfg.OUTPUT_DIR)
    claim(cfg, start_epoch > 0)
    if not hasattr(dataset, "pid_dict"):
        return
    if len(cfg.DATASETS.NAMES) > 1 and not all(isinstance(pid, str) for pid in dataset.pids):
        logger.warning(
            f"{' and '.join(cfg.DATASETS.NAMES)} name identities by numbers: one number is taken for one identity, "
            f"{dataset.num_classes} classes in all. Put the set's name before them, as fast-reid's own sets do."
        )
    sizes = dict.fromkeys(map(str, dataset.pids), 0)
    for item in dataset.img_items:
        sizes[str(item[1])] += 1
    if start_epoch > 0 and (then := read_classes(folder)) and then != sizes:
        name = next(key for key in {**then, **sizes} if then.get(key) != sizes.get(key))
        raise ValueError(
            f"cannot resume: {folder} was trained on {len(then)} classes, and the {len(sizes)} of DATASETS.NAMES "
            f"{list(cfg.DATASETS.NAMES)} differ: {name} had {then.get(name, 0)} images and has {sizes.get(name, 0)}. "
            "Set DATASETS back, or start anew in another OUTPUT_DIR with its checkpoint as MODEL.WEIGHTS."
        )
    if comm.is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / CLASSES, json.dumps(sizes))


def train_begun(train: Callable, self: Any) -> Any:
    """DefaultTrainer.train."""
    begin(self, self.start_epoch)
    return train(self)


def read_classes(folder: Path | str) -> dict[str, int]:
    """Training images of each identity of a run; empty where its folder does not say."""
    file = Path(folder) / CLASSES
    return json.loads(file.read_text()) if file.is_file() else {}
