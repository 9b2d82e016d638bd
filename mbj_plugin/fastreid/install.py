"""Every change that the plugin makes to a running fast-reid, in order; what fast-reid needs to run is in compat*.py.

Nothing is written to fast-reid's files, and a run without MBJHead and MODEL.MBJ is as it was.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from fastreid.config import CfgNode
from fastreid.engine import defaults as engine_defaults
from fastreid.engine.defaults import DefaultTrainer
from fastreid.engine.train_loop import SimpleTrainer, TrainerBase
from fastreid.evaluation.clas_evaluator import ClasEvaluator
from fastreid.modeling.meta_arch import build as meta_arch_build
from fastreid.utils.checkpoint import Checkpointer

from fastreid_today.compat import rebind
from mbj_plugin.fastreid import (
    backbone,  # noqa: F401  (registers the small one)
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


def install() -> None:
    """All of them, once."""
    if not config.add_defaults():  # they are there
        return
    datasets.register_datasets()
    around(CfgNode, "merge_from_other_cfg", config.merge_other)  # keys of MODEL.MBJ are checked by our rules
    around(CfgNode, "merge_from_list", config.merge_list)
    around(meta_arch_build, "build_model", collect.build_collecting)  # loss_mbj comes into the loss dict
    around(SimpleTrainer, "__init__", counts.prepare_first)  # a batch loss; class counts, from the trainer's own loader
    around(TrainerBase, "train", counts.train_from)  # the iteration that training begins at
    around(SimpleTrainer, "_write_metrics", collect.write_losses)  # one set of loss numbers, with and without MBJ
    around(engine_defaults, "default_setup", run_folder.setup_checked)  # no run is written over
    around(DefaultTrainer, "train", run_folder.train_begun)
    around(DefaultTrainer, "train", checks.train_checked)  # what would end the run after hours
    around(ClasEvaluator, "__init__", checks.clas_init_checked)  # a head without logits under FastClas
    around(TrainerBase, "train", diagnostics.train_watched)  # the hook that measures
    around(Checkpointer, "_load_model", checkpoint.load_model_checked)  # memories load whole, or not at all
    around(Checkpointer, "resume_or_load", checkpoint.resume_or_load_checked)
    around(Checkpointer, "load", checkpoint.load_checked)


def around(owner: Any, name: str, function: Callable) -> None:
    """Let ``function(stock, *arguments)`` be called in place of the stock function ``owner.name``.

    The registries keep their classes as they are: projects derive from what they hand out.
    """
    stock = getattr(owner, name)

    @functools.wraps(stock)
    def call(*arguments: Any, **options: Any) -> Any:
        return function(stock, *arguments, **options)

    setattr(owner, name, call)
    rebind(stock, call)
