"""MODEL.MBJ: the plugin's keys in fast-reid's config, their checks, and what a head reads from them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from fastreid.config import CfgNode
from fastreid.config import defaults as fastreid_defaults

from mbj_plugin.functional import NORMS

MEMORIES = ("prototype", "feature", "both")
# Symbols of the paper's re-ID experiments (Appendix B), which it gives without telling memories apart. ETA and NORM
# follow Omniglot's validation alphabets (docs/results.md): the smallest eta that has most of the gain, and the norm
# that gains before the training set is fitted as well as after. The paper's 1/7 and sum are in Base-MBJ.yml.
DEFAULTS = {
    "MEMORY": "prototype",  # what is remembered: MBJ-W, MBJ-F, or MBJ-WF
    "SIZE": 3500,  # M, slots of each memory
    "ETA": 3.0,  # eta of Eq. 2, weight of each memory's loss; 0 turns MBJ off
    "BETA": 1.5,  # beta of Eq. 5
    "NORM": "max",  # divides P by its largest, so that the rarest class always enters (ours); "sum" is Eq. 5 as printed
    "START": "auto",  # when the loss counts, which the paper leaves open; see mbj_plugin.fastreid.schedule
    "INTERVAL": 1,  # prototypes enter once in so many iterations (ours)
    "MOMENTUM": 0.0,  # prototype memory; > 0 is the paper's MBJ*
    "SCALE": 16.0,  # alpha of Eq. 4
    "MARGIN": 0.2,  # delta of Eq. 4
    "DIAGNOSTICS": True,  # see docs/diagnostics.md; changes nothing of the run
}
# What goes beyond is a slip of the pen, and would overflow in fp32 or in the allocator.
HIGHEST = {"SIZE": 10**8, "ETA": 1e6, "BETA": 100.0, "START": 10**12, "INTERVAL": 10**12, "SCALE": 1e6, "MARGIN": 1e6}
BELOW_1 = math.nextafter(1.0, 0.0)


def _number(low: float, high: float, wanted: str, above: bool = False) -> Callable[[str, object], float]:
    def check(key: str, value: object) -> float:
        number = _as_float(value)
        if number is None or not low <= number <= high or (above and number == low):
            raise ValueError(f"MODEL.MBJ.{key} must be {wanted}, got {value!r}")
        return number

    return check


def _choice(names: tuple[str, ...]) -> Callable[[str, object], str]:
    def check(key: str, value: object) -> str:
        if value not in names:
            raise ValueError(f"MODEL.MBJ.{key} must be one of {', '.join(names)}, got {value!r}")
        return value

    return check


def _switch(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"MODEL.MBJ.{key} must be True or False, got {value!r}")
    return value


def _whole(unit: str) -> Callable[[str, object], int]:
    def check(key: str, value: object) -> int:
        number = _as_float(value)
        if number is None or not 1 <= number <= HIGHEST[key] or number != int(number):
            raise ValueError(
                f"MODEL.MBJ.{key} must be a whole number of {unit} from 1 to {HIGHEST[key]}, got {value!r}"
            )
        return int(number)

    return check


def _start(key: str, value: object) -> Literal["auto"] | int | float:
    number = _as_float(value)
    if value == "auto":
        return "auto"
    if number is None or not 0 <= number <= HIGHEST[key] or (number >= 1 and number != int(number)):
        raise ValueError(
            f"MODEL.MBJ.{key} must be auto (the first decay of the learning rate), a number of iterations, or a "
            f"fraction of the run between 0 and 1, got {value!r}"
        )
    if number == 1 and str(value).strip() != "1":
        raise ValueError(f"MODEL.MBJ.{key} {value} is no fraction of the run below 1; for iteration 1 write 1")
    return number if 0 < number < 1 else int(number)


def _as_float(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)  # YAML reads 1e-3 as text
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


CHECKS: dict[str, Callable[[str, object], object]] = {
    "MEMORY": _choice(MEMORIES),
    "SIZE": _whole("slots"),
    "ETA": _number(0, HIGHEST["ETA"], f"a number from 0 (which turns MBJ off) to {HIGHEST['ETA']:g}"),
    "BETA": _number(0, HIGHEST["BETA"], f"a number from 0 to {HIGHEST['BETA']:g}"),
    "NORM": _choice(NORMS),
    "START": _start,
    "INTERVAL": _whole("iterations"),
    "MOMENTUM": _number(0, BELOW_1, "a number from 0 to below 1"),
    "SCALE": _number(0, HIGHEST["SCALE"], f"a number above 0, up to {HIGHEST['SCALE']:g}", above=True),
    "MARGIN": _number(0, HIGHEST["MARGIN"], f"a number from 0 to {HIGHEST['MARGIN']:g}"),
    "DIAGNOSTICS": _switch,
}


def checked(key: str, value: object) -> object:
    """Value of MODEL.MBJ.``key`` in its own type.

    Raises:
        ValueError: for an unknown key or a value out of range.
    """
    if key not in CHECKS:
        raise ValueError(f"unknown config key MODEL.MBJ.{key}: the keys are {', '.join(CHECKS)}")
    return CHECKS[key](key, value)


@dataclass(frozen=True)
class Settings:
    """MODEL.MBJ, checked. Fields are the keys in lower case."""

    memory: str
    size: int
    eta: float
    beta: float
    norm: str
    start: Literal["auto"] | int | float
    interval: int
    momentum: float
    scale: float
    margin: float
    diagnostics: bool

    @property
    def kinds(self) -> tuple[str, ...]:
        """Memories in use: none where ETA is 0."""
        if self.eta == 0:
            return ()
        return ("prototype", "feature") if self.memory == "both" else (self.memory,)


def read_settings(cfg: CfgNode) -> Settings:
    """MODEL.MBJ of ``cfg``, checked again: values can also be set without any merge."""
    node = cfg.MODEL.get("MBJ", {})
    values: dict[str, Any] = {key.lower(): checked(key, value) for key, value in {**DEFAULTS, **node}.items()}
    return Settings(**values)


def register_config() -> None:
    """Add MODEL.MBJ to fast-reid's defaults, and make merges check it. Runs once."""
    model = fastreid_defaults._C.MODEL
    if "MBJ" not in model:
        model.MBJ = CfgNode(dict(DEFAULTS))
        CfgNode.merge_from_other_cfg = _checking_other(CfgNode.merge_from_other_cfg)
        CfgNode.merge_from_list = _checking_list(CfgNode.merge_from_list)


# yacs takes a value only in the type of the one before: no int for a float, no number where `auto` was. So our keys are
# taken out of what is merged, checked by our own rules, and set.


def _checking_other(merge: Callable) -> Callable:
    @functools.wraps(merge)
    def merge_from_other_cfg(self, cfg_other):
        ours = cfg_other.MODEL.get("MBJ") if isinstance(cfg_other.get("MODEL"), dict) else None
        if ours is None or "MBJ" not in self.get("MODEL", {}):
            return merge(self, cfg_other)
        if not isinstance(ours, dict):
            raise ValueError(f"MODEL.MBJ must hold the keys {', '.join(CHECKS)}, got {ours!r}")
        values = {key: checked(key, value) for key, value in ours.items()}
        others = cfg_other.clone()
        others.defrost()
        del others.MODEL["MBJ"]
        merge(self, others)
        self.MODEL.MBJ.update(values)
        return None

    return merge_from_other_cfg


def _checking_list(merge: Callable) -> Callable:
    @functools.wraps(merge)
    def merge_from_list(self, cfg_list):
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

    return merge_from_list
