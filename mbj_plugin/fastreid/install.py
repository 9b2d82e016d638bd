"""Every change that MBJ makes to a running fast-reid, beside its entries in fast-reid's registries, in order.

Nothing is written to fast-reid's files, and a run without MBJHead and MODEL.MBJ is as it was. What fast-reid needs to
run at all is in fastreid_today; `python -m fastreid_today.doctor --plugin mbj_plugin.fastreid` prints all.
"""

from __future__ import annotations

from collections.abc import Callable

from fastreid_today.changes import apply_all, change, replaces
from mbj_plugin.fastreid import (
    checkpoint,
    collect,
    config,
    counts,
    datasets,
    diagnostics,
    run_folder,
    timm_backbone,  # noqa: F401  (registers timm's models)
)

CHANGES: tuple[tuple[str, Callable, str], ...] = (
    ("data.datasets:DATASET_REGISTRY.get", datasets.get_or_register, "any edition <H, S> by its name"),
    ("modeling.meta_arch.build:build_model", collect.build_collecting, "loss_mbj comes into the model's loss dict"),
    ("engine.train_loop:SimpleTrainer.__init__", counts.prepare_first, "class counts, from the trainer's own loader"),
    ("engine.train_loop:TrainerBase.train", counts.train_from, "the iteration that training begins at"),
    ("engine.train_loop:SimpleTrainer._write_metrics", collect.write_losses, "the same loss numbers, with MBJ or not"),
    ("engine.defaults:default_setup", run_folder.setup_checked, "no run is written over"),
    ("engine.defaults:DefaultTrainer.train", run_folder.train_begun, "the same"),
    ("engine.train_loop:TrainerBase.train", diagnostics.train_watched, "the hook that measures"),
    ("utils.checkpoint:Checkpointer._load_model", checkpoint.load_model_checked, "memories load whole, or not at all"),
    ("utils.checkpoint:Checkpointer.load", checkpoint.load_noted, "the same: it knows who goes on with a run"),
)
change("config/defaults.py", "the keys of MODEL.MBJ")(config.add_keys)
for target, function, what_for in CHANGES:
    replaces(target, what_for)(function)


def install() -> None:
    """All of them; what has been done is not done again."""
    apply_all()
