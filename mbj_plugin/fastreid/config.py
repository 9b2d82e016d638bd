"""MODEL.MBJ: MBJ's settings in fast-reid's config."""

from __future__ import annotations

import functools
import logging
from typing import Any

import yacs.config
from fastreid.config import CfgNode
from fastreid.config import defaults as fastreid_defaults

from mbj_plugin.settings import OF_ONE_MEMORY, RULES, MBJSettings, read

logger = logging.getLogger("fastreid.mbj_plugin")
PREFIX = "MODEL.MBJ."
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
    own = read(key.lower(), value, PREFIX + key)
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


def add_keys() -> None:
    """They are among fast-reid's defaults, and their values are checked by MBJ's rules wherever they are merged."""
    fastreid_defaults._C.MODEL.MBJ = CfgNode(dict(DEFAULTS))
    coerce = yacs.config._check_and_coerce_cfg_value_type

    # yacs takes a value only in the type of the one before: no int for a float, no number where `auto` was.
    def coerce_or_check(value: Any, before: Any, key: str, full_key: str) -> Any:
        own = full_key == PREFIX + key and key in DEFAULTS
        return checked(key, value) if own else coerce(value, before, key, full_key)

    yacs.config._check_and_coerce_cfg_value_type = coerce_or_check
