"""Training configs: YAML files of flag names, found by path or by name, with ``_BASE_`` as in fast-reid."""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path
from typing import Any

import yaml


def config_folder() -> Path:
    """The folder of the shipped timm configs: in the installed package, or in the clone."""
    installed = Path(str(resources.files("mbj_plugin"))) / "configs" / "timm"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "configs" / "timm"


def find_config(name: str) -> Path:
    """Path of a config: a file, or the name of a shipped one with or without ``.yaml``.

    Raises:
        ValueError: for a name that is neither, with the names there are.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = {path.stem: path for path in sorted(config_folder().glob("*.yaml"))}
    if (path := shipped.get(Path(name).name.removesuffix(".yaml"))) is not None:
        return path
    raise ValueError(f"no config {name!r}: it is no file, and the shipped ones are {', '.join(shipped)}")


def load_config(name: str) -> dict[str, Any]:
    """The values of a config over those of the file that its ``_BASE_`` names, relative to itself.

    Raises:
        ValueError: for a file that is missing or no YAML mapping.
    """
    path = find_config(name)
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read the config {path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"the config {path} must be a mapping of flag names, got {type(values).__name__}")
    base = values.pop("_BASE_", None)
    return (load_config(str(path.parent / base)) if base else {}) | values


def check_keys(values: dict[str, Any], known: set[str], source: str) -> None:
    """Raise ValueError for a key that is no flag, with the nearest one."""
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise ValueError(f"{source}: unknown key {key!r}" + (f", did you mean {near[0]!r}?" if near else ""))
