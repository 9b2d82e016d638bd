"""MODEL.MBJ: MBJ's settings in fast-reid's config."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from fastreid.config import CfgNode
from fastreid.config import defaults as fastreid_defaults

from mbj_plugin.settings import OF_ONE_MEMORY, RULES, MBJSettings, read

logger = logging.getLogger("fastreid.mbj_plugin")
# The memory of features trains the head's own classifier here, and fast-reid counts the images itself.
LEFT_OUT = ("classifier", "classifier_loss", "class_counts")
_DEFAULT = MBJSettings.preset("retrieval")
DEFAULTS = {name.upper(): getattr(_DEFAULT, name) for name in RULES if name not in LEFT_OUT}


def checked(key: str, value: object) -> Any:
    """Value of MODEL.MBJ.``key`` in its own type.

    Raises:
        ValueError: for an unknown key or a value out of range.
    """
    if key not in DEFAULTS:
        raise ValueError(f"unknown config key MODEL.MBJ.{key}: the keys are {', '.join(DEFAULTS)}")
    own = read(key.lower(), value, f"MODEL.MBJ.{key}")
    part_of_an_iteration = key == "START" and isinstance(own, float) and own > 1
    if part_of_an_iteration or (own is None and DEFAULTS[key] is not None):
        raise ValueError(f"MODEL.MBJ.{key} must be {RULES[key.lower()].wanted}, got {value!r}")
    return own


def read_settings(cfg: CfgNode) -> MBJSettings:
    """MODEL.MBJ of ``cfg``, checked again: values can also be set without any merge."""
    given = {**DEFAULTS, **cfg.MODEL.get("MBJ", {})}
    values = {key.lower(): checked(key, value) for key, value in given.items()}
    for name, kind in OF_ONE_MEMORY.items():
        default = DEFAULTS[name.upper()]
        if values["memory"] not in (kind, "both") and values[name] != default:
            _does_nothing(name.upper(), values[name], kind)
            values[name] = default
    return MBJSettings(**values)


@functools.cache  # once, however many heads there are
def _does_nothing(key: str, value: Any, kind: str) -> None:
    # No error: a config can keep the settings of another arm.
    logger.warning(f"MODEL.MBJ.{key} {value} does nothing: it is of memorised {kind}s, see MODEL.MBJ.MEMORY")


def add_defaults() -> bool:
    """Add MODEL.MBJ to fast-reid's defaults; whether it was not there yet."""
    model = fastreid_defaults._C.MODEL
    if "MBJ" in model:
        return False
    model.MBJ = CfgNode(dict(DEFAULTS))
    return True


# yacs takes a value only in the type of the one before: no int for a float, no number where `auto` was. So our keys are
# taken out of what is merged, checked by our own rules, and set.


def merge_other(merge: Callable, self: CfgNode, cfg_other: CfgNode) -> None:
    """CfgNode.merge_from_other_cfg."""
    ours = cfg_other.MODEL.get("MBJ") if isinstance(cfg_other.get("MODEL"), dict) else None
    if ours is None or "MBJ" not in self.get("MODEL", {}):
        return merge(self, cfg_other)
    if not isinstance(ours, dict):
        raise ValueError(f"MODEL.MBJ must hold the keys {', '.join(DEFAULTS)}, got {ours!r}")
    values = {key: checked(key, value) for key, value in ours.items()}
    others = cfg_other.clone()
    del others.MODEL["MBJ"]
    merge(self, others)
    self.MODEL.MBJ.update(values)
    return None


def merge_list(merge: Callable, self: CfgNode, cfg_list: list) -> None:
    """CfgNode.merge_from_list."""
    if "MBJ" not in self.get("MODEL", {}) or len(cfg_list) % 2:
        return merge(self, cfg_list)
    prefix, values, others = "MODEL.MBJ.", {}, []
    for key, value in zip(cfg_list[0::2], cfg_list[1::2], strict=True):
        if key.startswith(prefix):
            values[key.removeprefix(prefix)] = checked(key.removeprefix(prefix), self._decode_cfg_value(value))
        else:
            others += [key, value]
    merge(self, others)
    self.MODEL.MBJ.update(values)
    return None
