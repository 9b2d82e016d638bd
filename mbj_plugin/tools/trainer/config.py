"""Training configs: YAML files of flag names, found by path or by name, with ``_BASE_`` as in fast-reid."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import yaml

from mbj_plugin.command_line import did_you_mean, reason
from mbj_plugin.files import find_config


def load_config(name: str, leaves: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a config over those of the file that its ``_BASE_`` names, relative to itself.

    Raises:
        ValueError: for a file that is missing, no YAML mapping, or its own base.
    """
    path = find_config(name, "timm", ".yaml")
    if path.resolve() in leaves:
        raise ValueError(f"the config {path} is its own _BASE_")
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read the config {path}: {reason(error)}") from error
    if not isinstance(values, dict):
        raise ValueError(f"the config {path} must be a mapping of flag names, got {type(values).__name__}")
    base = values.pop("_BASE_", None)
    return (load_config(str(path.parent / str(base)), (*leaves, path.resolve())) if base else {}) | values


def check_values(values: dict[str, Any], parser: ArgumentParser, source: str) -> None:
    """Raise ValueError for a key that is no flag, with the nearest one, and for a value that the flag does not take.

    A number that YAML takes for text, such as 1e-3, becomes one.
    """
    actions = {action.dest: action for action in parser._actions}
    for key, value in values.items():
        if key not in actions:
            raise ValueError(f"{source}: unknown key {key!r}{did_you_mean(str(key), actions)}")
        action = actions[key]
        kind: Any = bool if action.nargs == 0 else action.type or str
        if key.endswith("_kwargs"):
            if not isinstance(value, dict):
                raise ValueError(f"{source}: {key} must be a mapping of arguments, got {value!r}")
            continue
        if value is None:
            if action.default is not None:
                raise ValueError(f"{source}: {key} is empty: give a value ({kind.__name__}), or leave it out")
            continue
        several = action.nargs in ("+", "*") or (isinstance(action.nargs, int) and action.nargs > 1)
        if kind is float:
            value = values[key] = [_number(v) for v in value] if isinstance(value, list) else _number(value)
        items = value if several and isinstance(value, list) else [value]
        if several != isinstance(value, list) or not all(_is(item, kind) for item in items):
            wanted = f"a list of {kind.__name__}" if several else kind.__name__
            raise ValueError(f"{source}: {key} must be {wanted}, got {value!r}")
        if action.choices and value not in action.choices:
            raise ValueError(f"{source}: {key} must be one of {list(action.choices)}, got {value!r}")


def _number(value: Any) -> Any:
    # YAML 1.1 reads 1.0e-3 as a number and 1e-3 as text.
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _is(value: Any, kind: type) -> bool:
    if kind is not bool and isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, int | float)
    return isinstance(value, kind) if kind in (int, bool) else isinstance(value, str | int | float)
