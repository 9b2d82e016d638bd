"""Pairs of whole steps and runs in the hosts: with MBJ, its diagnostics included, against the same without."""

import contextlib
import copy
import importlib
import io
import itertools
import logging
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.speed.timing import Call, Pair
from mbj_plugin.longtail import exponential_counts


def draw(root: Path) -> None:
    """A long-tailed ImageFolder of noise, in CIFAR's size."""
    rng = np.random.default_rng(0)
    for split, counts in (("train", exponential_counts(10, 600, 100)), ("validation", [20] * 10)):
        for label, count in enumerate(counts):
            folder = root / split / str(label)
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")


def timm_pairs(device: str, batch_sizes: tuple[int, ...] = (32, 128)) -> Iterator[Pair]:
    """train_timm on ResNet-32 at 32 x 32: forward, backward and optimizer on a batch that is loaded already."""
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder) / "images")
        for size in batch_sizes:
            on = timm_step(folder, size, "--device", device, "--mbj", "--mbj-start", "0")
            off = timm_step(folder, size, "--device", device)
            yield f"a step of train_timm with --mbj / without (resnet32_cifar, batch {size})", on, off


def timm_step(folder: str, size: int, *flags: str) -> Call:
    """A step of a run with such flags, its memory full."""
    from mbj_plugin.tools.trainer import train
    from mbj_plugin.tools.trainer.args import parse_args
    from mbj_plugin.tools.trainer.run import make_run

    logging.getLogger("mbj_plugin").setLevel(logging.WARNING)
    argv = [f"{folder}/images", "--model", "resnet32_cifar", "--input-size", "3", "32", "32", "-b", str(size)]
    run = make_run(parse_args([*argv, "-j", "0", "--lr", "0.1", "--warmup-epochs", "0", "--output", folder, *flags]))
    images, target = next(iter(run.data.train))
    run.task.get_trainable_module().train()

    def step() -> None:
        run.optimizer.zero_grad()
        train._step(run, images, target, True, 1)

    for _ in range(30):  # the memory fills
        step() if "--mbj" in flags else None
    return step


#: ResNet-32 on the 296 digits of the default job, at a size where the step counts.
RUN = ("--model-kwargs", "depth=32", "--input-size", "1", "32", "32", "--epochs", "3", "--decay-milestones", "2")


def run_pairs(device: str) -> Iterator[Pair]:
    """A whole run of train_timm with ``--mbj`` and its table, evaluation and checkpoints included, against one
    without."""
    on, off = (partial(whole_run, device, *more) for more in (["--mbj"], []))
    yield "a whole run of train_timm with --mbj and its table / without (resnet32_cifar, digits at 32 x 32)", on, off


def whole_run(device: str, *flags: str) -> str:
    """Train, and give what is printed."""
    from mbj_plugin.tools.trainer.train import main

    logging.getLogger("mbj_plugin").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as printed:
        main([*RUN, "--warmup-epochs", "0", "--device", device, "--no-progress", *flags, "--output", folder])
    return printed.getvalue()


def fastreid_pairs(device: str, size: tuple[int, int] = (256, 128), batch: int = 16) -> Iterator[Pair]:
    """fast-reid's trainer on ResNet-50 with CosFace: MBJHead against EmbeddingHead, on a batch that is loaded."""
    with tempfile.TemporaryDirectory() as folder:
        on, off = (fastreid_step(Path(folder), device, head, size, batch) for head in ("MBJHead", "EmbeddingHead"))
        what = f"ResNet-50, {size[0]} x {size[1]}, batch {batch}"
        yield f"a step of fast-reid with MBJHead / EmbeddingHead ({what})", on, off


def fastreid_step(folder: Path, device: str, head: str, size: tuple[int, int], batch: int) -> Call:
    """A step of a run with such a head."""
    importlib.import_module("mbj_plugin.fastreid")  # before anything of fast-reid
    import fastreid.data.build
    from fastreid.config import get_cfg
    from fastreid.engine import DefaultTrainer
    from fastreid.utils.events import EventStorage

    from benchmarks.retrieval.runner import quiet_fastreid
    from benchmarks.retrieval.synthetic import Plan, draw_dataset
    from mbj_plugin.fastreid.diagnostics import add_hook
    from mbj_plugin.tools.fastreid.train import find_config

    quiet_fastreid()
    draw_dataset(folder, Plan())
    fastreid.data.build._root = str(folder)  # what FASTREID_DATASETS named when it was imported
    cfg = get_cfg()
    cfg.merge_from_file(find_config("Demo-MBJ.yml"))
    options = {
        "MODEL.BACKBONE.NAME": "build_resnet_backbone",
        "MODEL.BACKBONE.DEPTH": "50x",
        "MODEL.BACKBONE.FEAT_DIM": 2048,
        "MODEL.BACKBONE.PRETRAIN": False,
        "MODEL.HEADS.NAME": head,
        "MODEL.DEVICE": device,
        "MODEL.MBJ.START": 0,
        "MODEL.MBJ.SIZE": 3500,
        "INPUT.SIZE_TRAIN": list(size),
        "INPUT.SIZE_TEST": list(size),
        "SOLVER.IMS_PER_BATCH": batch,
        "DATALOADER.NUM_WORKERS": 0,
        "OUTPUT_DIR": str(folder / head),
    }
    cfg.merge_from_list([part for option in options.items() for part in option])
    (folder / head).mkdir()
    trainer = DefaultTrainer(cfg)
    inner = trainer._trainer
    add_hook(trainer, 10**9)  # the diagnostics, as trainer.train() adds them
    first = next(inner._data_loader_iter)
    inner._data_loader_iter = (copy.deepcopy(first) for _ in itertools.count())  # fast-reid writes into its input
    storage = EventStorage(0)

    def step() -> None:
        with storage:
            inner.iter = storage.iter
            inner.run_step()
            storage.step()

    return step
