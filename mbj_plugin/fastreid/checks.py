"""What would end a run after hours, or train nothing without a word, found before it trains."""

from __future__ import annotations

import ast
import inspect
import logging
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.engine.defaults import DefaultTrainer
from fastreid.modeling.meta_arch import Baseline
from fastreid.modeling.meta_arch.mgn import MGN
from fastreid.utils import comm
from torch import nn

from fastreid_today.compat_messages import no_match

logger = logging.getLogger("fastreid.mbj_plugin")
METRICS = ("cosine", "euclidean", "jaccard")
HEAD_OUTPUTS = ("cls_outputs", "pred_class_logits", "features")  # EmbeddingHead's, and so MBJHead's
RANKS = 10  # fast-reid's evaluation reports up to Rank-10, and fails on a smaller gallery


def check_loss_names(model: nn.Module) -> None:
    """A batch loss whose name the model's ``losses`` does not know would be left out without a word. Of a project's own
    ``losses``, which may look names up in another way, a warning.

    Raises:
        ValueError: for such a name in MODEL.LOSSES.NAME.
    """
    names, known = _loss_names(model), _known_losses(model)
    unknown = [name for name in names or () if name not in known and name != "MBJLoss"]
    if not unknown or not known:
        return
    said = (
        f"MODEL.LOSSES.NAME has {unknown[0]!r}, which {type(model).__name__} does not know, so it would train nothing: "
        f"it takes {', '.join(known)}"
    )
    if not vars(_with_losses(model)[0])["losses"].__module__.startswith("fastreid."):
        logger.warning(said)
    else:
        raise ValueError(said)


def check_a_batch_loss(model: nn.Module) -> None:
    """
    Raises:
        ValueError: where MODEL.LOSSES.NAME is empty and the model has no other batch loss.
    """
    only_these = getattr(type(model), "losses", None) in (Baseline.losses, MGN.losses)
    if only_these and _loss_names(model) == ():
        raise ValueError(
            "MODEL.LOSSES.NAME is empty, so no batch loss would train the model: name one or more of "
            f"{', '.join(_known_losses(model))}"
        )


def _loss_names(model: nn.Module) -> tuple[str, ...] | None:
    """MODEL.LOSSES.NAME of a model built from a config; None for others."""
    names = (getattr(model, "loss_kwargs", None) or {}).get("loss_names")
    return None if names is None else (names,) if isinstance(names, str) else tuple(names)


def _known_losses(model: nn.Module) -> list[str]:
    """Names that the ``losses`` methods of the model's class ask for: fast-reid has no list of them."""
    codes = [vars(kind)["losses"].__code__ for kind in _with_losses(model)]
    constants = [constant for code in codes for constant in code.co_consts if isinstance(constant, str)]
    return list(dict.fromkeys(name for name in constants if name.isidentifier() and name[0].isupper()))


def check_head_outputs(model: nn.Module) -> None:
    """A project's model may need what only the project's own head returns.

    Raises:
        ValueError: where the ``losses`` of the model's class read other outputs than MBJHead's.
    """
    for kind in _with_losses(model):
        losses = vars(kind)["losses"]
        outputs = list(inspect.signature(losses).parameters)[1]
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(losses)))
        except (OSError, SyntaxError):  # typed in, or generated
            continue
        read = [
            node for node in ast.walk(tree) if isinstance(node, ast.Subscript) and ast.unparse(node.value) == outputs
        ]
        keys = [node.slice.value for node in read if isinstance(node.slice, ast.Constant)]
        if other := [key for key in keys if key not in HEAD_OUTPUTS]:
            raise ValueError(
                f"MODEL.META_ARCHITECTURE {kind.__name__} reads {other[0]!r} of its head, which MBJHead does not "
                "return: set MODEL.HEADS.NAME to the project's own head"
            )


def _with_losses(model: nn.Module) -> list[type]:
    return [kind for kind in type(model).__mro__ if inspect.isfunction(vars(kind).get("losses"))]


def check_solver(cfg: Any, start_epoch: int) -> None:
    """
    Raises:
        ValueError: for periods and epochs with which fast-reid fails at the end of an epoch or of the run.
    """
    for key, value in (
        ("TEST.EVAL_PERIOD", cfg.TEST.EVAL_PERIOD),
        ("SOLVER.CHECKPOINT_PERIOD", cfg.SOLVER.CHECKPOINT_PERIOD),
        ("SOLVER.MAX_EPOCH", cfg.SOLVER.MAX_EPOCH),
    ):
        if value < 1:
            raise ValueError(f"{key} must be a number of epochs of 1 or more, got {value}")
    if start_epoch >= cfg.SOLVER.MAX_EPOCH:
        raise ValueError(
            f"the checkpoint has {start_epoch} epochs behind it and SOLVER.MAX_EPOCH is {cfg.SOLVER.MAX_EPOCH}, so "
            "there is nothing to train: raise MAX_EPOCH, or start anew in another OUTPUT_DIR without --resume"
        )


def check_evaluation(trainer: type[DefaultTrainer], cfg: Any) -> None:
    """What the run's evaluation needs, where it is fast-reid's own; of a project's only that its data sets exist.

    Raises:
        ValueError: where TEST or DATASETS.TESTS would let evaluation fail, which comes before the last checkpoint.
        FileNotFoundError: where a test set is not there.
    """
    if not cfg.DATASETS.TESTS:
        raise ValueError("DATASETS.TESTS is empty, and fast-reid evaluates at the end of a run: name a data set")
    if cfg.TEST.METRIC not in METRICS:
        raise ValueError(f"TEST.METRIC must be one of {', '.join(METRICS)}, got {cfg.TEST.METRIC!r}")
    if comm.get_world_size() > cfg.TEST.IMS_PER_BATCH:
        raise ValueError(
            f"TEST.IMS_PER_BATCH {cfg.TEST.IMS_PER_BATCH} leaves no image for each of {comm.get_world_size()} ranks: "
            "raise it"
        )
    for name in cfg.DATASETS.TESTS:
        DATASET_REGISTRY.get(name)
        if inspect.getattr_static(trainer, "build_evaluator") is vars(DefaultTrainer)["build_evaluator"]:
            loader, num_query = trainer.build_test_loader(cfg, name)
            check_searchable(name, loader.dataset, num_query)


def check_searchable(name: str, dataset: Any, num_query: int) -> None:
    """fast-reid compares a query with images of other cameras alone.

    Args:
        name: what the messages call the data set.
        dataset: of the test loader; one without ``img_items`` is not looked at.
        num_query: its first images are the queries, the others the gallery.

    Raises:
        ValueError: where no query can be found, or the gallery is too small.
    """
    items: Sequence[tuple] | None = getattr(dataset, "img_items", None)
    if items is None:
        return
    queries, gallery = items[:num_query], items[num_query:]
    if not queries or len(gallery) < RANKS:
        raise ValueError(
            f"{name} has {len(queries)} query and {len(gallery)} gallery images, too few to evaluate: it takes 1 and "
            f"{RANKS}. Set DATASETS.TESTS to another set, or look into its folder"
        )
    cameras: dict[object, set] = {}
    for _, identity, camera, *_ in gallery:
        cameras.setdefault(identity, set()).add(camera)
    if not any(cameras.get(identity, set()) - {camera} for _, identity, camera, *_ in queries):
        number = len({item[2] for item in items})
        raise ValueError(no_match(name, f"{number} camera{'s' * (number != 1)}"))


def train_checked(train: Callable, self: DefaultTrainer) -> Any:
    """DefaultTrainer.train."""
    check_solver(self.cfg, self.start_epoch)
    check_evaluation(type(self), self.cfg)
    return train(self)


def clas_init_checked(init: Callable, self: Any, cfg: Any, *arguments: Any, **options: Any) -> None:
    """ClasEvaluator.__init__."""
    check_class_head(cfg.MODEL.HEADS.NAME)
    init(self, cfg, *arguments, **options)


def check_class_head(name: str) -> None:
    """
    Raises:
        ValueError: for a head whose features would be taken for the logits of classes, so that accuracy would be 0.
    """
    if name in ("MBJHead", "EmbeddingHead"):
        raise ValueError(
            f"MODEL.HEADS.NAME is {name}, which returns features in evaluation, where FastClas looks for logits of "
            "classes: set it to ClasHead. For MBJ on a classifier take the timm side"
        )
