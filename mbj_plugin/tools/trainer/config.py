"""Training configs: YAML files of flag names, found by path or by name, with ``_BASE_`` as in fast-reid."""

from __future__ import annotations

from argparse import ArgumentParser, BooleanOptionalAction
from pathlib import Path
from typing import Any

import yaml

from mbj_plugin.command_line import did_you_mean, reason
from mbj_plugin.tools.files import find_config


def load_config(name: str, leaves: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a config over those of the file that its ``_BASE_`` names, relative to itself."""
    path = find_config(name, "timm", ".yaml")
    if path.resolve() in leaves:
        raise ValueError(f"the config {path} is its own _BASE_")
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read the config {path}: {reason(error)}") from error
    if not isinstance(values, dict):
        raise ValueError(f"the config {path} must be a mapping of flag names, got {type(values).__name__}")
    base = values.pop("_BASE_", None)
    return (load_config(str(path.parent / str(base)), (*leaves, path.resolve())) if base else {}) | values


def as_argv(values: dict[str, Any], parser: ArgumentParser, source: str) -> list[str]:
    """The values of a config as the command line that means the same, so that one parser reads both."""
    actions = {action.dest: action for action in parser._actions if action.option_strings}
    argv: list[str] = []
    for key, value in values.items():
        if key not in actions:
            raise ValueError(f"{source}: unknown key {key!r}{did_you_mean(str(key), actions)}")
        action, flag = actions[key], next(name for name in actions[key].option_strings if name.startswith("--"))
        takes: Any = bool if action.nargs == 0 else list if action.nargs in ("+", 3) else str | int | float
        takes = dict if key.endswith("_kwargs") else takes
        if value is None and action.default is None:
            continue
        if not isinstance(value, takes) or (value is False and action.nargs != 0) or value in ([], {}):
            raise ValueError(f"{source}: {key} cannot be {value!r}: give a value as --help says, or leave it out")
        if isinstance(value, dict):
            argv += [flag, *(f"{name}={each!r}" for name, each in value.items())]
        elif isinstance(value, list):
            argv += [flag, *map(str, value)]
        elif value is True:
            argv.append(flag)
        elif value is False:
            argv += [action.option_strings[1]] if isinstance(action, BooleanOptionalAction) else []
        else:
            argv.append(f"{flag}={value}")
    return argv
