"""What would end a run after hours, or train nothing without a word, found before it trains."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

from fastreid.modeling.meta_arch import Baseline
from fastreid.modeling.meta_arch.mgn import MGN
from torch import nn

logger = logging.getLogger("fastreid.mbj_plugin")


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


def _with_losses(model: nn.Module) -> list[type]:
    return [kind for kind in type(model).__mro__ if inspect.isfunction(vars(kind).get("losses"))]


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
