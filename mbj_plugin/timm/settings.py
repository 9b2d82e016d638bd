"""MBJ's settings in timm, from command-line flags (train_timm) or the variable MBJ (timm's own train.py)."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Any

from mbj_plugin.command_line import did_you_mean
from mbj_plugin.settings import PRESETS, RULES, MBJSettings, read

RECIPES = PRESETS["classification"]


def from_text(text: str) -> MBJSettings:
    """Settings from ``key=value,key=value``, the content of the variable MBJ; empty = the defaults.

    Raises:
        ValueError: for an unknown key or a value out of range.
    """
    values: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        key, separator, value = (piece.strip() for piece in part.partition("="))
        if key not in RULES or not separator:
            hint = "" if key in RULES else did_you_mean(key, RULES)
            raise ValueError(f"MBJ: cannot read {part!r}: write key=value with a key of {list(RULES)}{hint}")
        values[key] = read(key, value, f"MBJ: {key}")
    return MBJSettings(**values)


def from_args(args: Namespace) -> MBJSettings:
    """Settings from the flags of :func:`add_arguments`."""
    return MBJSettings(**{name: read(name, getattr(args, f"mbj_{name}"), flag(f"mbj_{name}")) for name in RULES})


def flag(name: str) -> str:
    """The flag of an argument."""
    return "--" + name.replace("_", "-")


def add_arguments(parser: ArgumentParser) -> None:
    """The flags ``--mbj`` and ``--mbj-...``."""
    group = parser.add_argument_group("Memory-based Jitter")
    group.add_argument(
        "--mbj", action="store_true", help="train with Memory-based Jitter: lowers the tail error, may raise the head's"
    )
    group.add_argument(
        "--mbj-recipe",
        choices=tuple(RECIPES),
        default="default",
        help="settings that go together: 'balanced' is --mbj-classifier-loss balanced_softmax --mbj-eta 1; 'paper' has "
        "the paper's equations, --mbj-norm sum --mbj-start 0, with a second classifier (add --mbj-classifier shared to "
        "train exactly as in the paper); other flags override the recipe (default: %(default)s)",
    )
    for name, rule in RULES.items():
        metavar = {int: "N", float: "X"}.get(rule.kind, "FILE" if name == "class_counts" else "WHEN")
        more: dict[str, Any] = {"choices": rule.choices} if rule.choices else {"type": rule.kind, "metavar": metavar}
        default = getattr(MBJSettings, name)
        text = rule.help if default is None else f"{rule.help} (default: {default})"
        group.add_argument(flag(f"mbj_{name}"), default=default, help=text, **more)
