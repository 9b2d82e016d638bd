"""Every change that MBJ makes to a running fast-reid, beside its entries in fast-reid's registries, in order.

Nothing is written to fast-reid's files, and a run without MBJHead and MODEL.MBJ is as it was. What fast-reid needs to
run at all is in fastreid_today; `python -m fastreid_today.doctor --plugin mbj_plugin.fastreid` prints all.
"""

from __future__ import annotations

from collections.abc import Callable

from fastreid_today.changes import apply_all, change, replaces
from mbj_plugin.fastreid import (
    checkpoint,
    checks,
    collect,
    config,
    counts,
    datasets,
    diagnostics,
    run_folder,
    timm_backbone,  # noqa: F401  (registers timm's models)
)

CHANGES: tuple[tuple[str, Callable, str], ...] = (
    ("config.config:CfgNode.merge_from_other_cfg", config.merge_other, "keys of MODEL.MBJ are checked by MBJ's rules"),
    ("config.config:CfgNode.merge_from_list", config.merge_list, "the same, on the command line"),
    ("data.datasets:DATASET_REGISTRY.get", datasets.get_or_register, "any edition <H, S> by its name"),
    ("modeling.meta_arch.build:build_model", collect.build_collecting, "loss_mbj comes into the model's loss dict"),
    ("engine.train_loop:SimpleTrainer.__init__", counts.prepare_first, "class counts, from the trainer's own loader"),
    ("engine.train_loop:TrainerBase.train", counts.train_from, "the iteration that training begins at"),
    (
        "engine.train_loop:SimpleTrainer._write_metrics",
        collect.write_losses,
        "one set of loss numbers, with MBJ or not",
    ),
    ("engine.defaults:default_setup", run_folder.setup_checked, "no run is written over"),
    ("engine.defaults:DefaultTrainer.train", run_folder.train_begun, "the same"),
    ("engine.train_loop:TrainerBase.train", diagnostics.train_watched, "the hook that measures"),
    ("evaluation.clas_evaluator:ClasEvaluator.__init__", checks.clas_init_checked, "a head without logits in FastClas"),
    ("utils.checkpoint:Checkpointer._load_model", checkpoint.load_model_checked, "memories load whole, or not at all"),
    ("utils.checkpoint:Checkpointer.resume_or_load", checkpoint.resume_or_load_checked, "a resume says so"),
    ("utils.checkpoint:Checkpointer.load", checkpoint.load_checked, "the same"),
)


@change("config/defaults.py", "MODEL.MBJ")
def mbj_entries() -> None:
    """Its keys are among fast-reid's defaults."""
    config.add_defaults()


for target, function, what_for in CHANGES:
    replaces(target, what_for)(function)


def install() -> None:
    """All of them; what has been done is not done again."""
    apply_all()
