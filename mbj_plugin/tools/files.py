"""Files of the tools: new ones alone, rows read line by line, configs found by name."""

from __future__ import annotations

import csv
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mbj_plugin
from mbj_plugin.command_line import reason
from mbj_plugin.files import atomic_path


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes ``path`` at the end: whole, or not at all.

    Whatever a tool writes after training goes through here or through :func:`new_folder`. Neither replaces a file that
    is there, so that no checkpoint, no results and no image of a user's is ever lost.

    Raises:
        ValueError: for a file that is there already, and where the file cannot be written.
    """
    if os.path.lexists(path):
        raise ValueError(f"{path} is there already, and no file is written over: remove it, or name another file")
    with writing(path), atomic_path(path) as part:
        yield part


@contextmanager
def new_folder(path: Path, again: str = "") -> Iterator[Path]:
    """An empty folder to write to, which becomes ``path`` at the end: whole, or not at all.

    Args:
        path: a folder that is empty or not there.
        again: name of a file, such as "report.html": a folder that holds it, and PNGs beside it alone, is one that the
            tool wrote before, and is replaced.

    Raises:
        ValueError: for a folder that holds other files, and where it cannot be written.
    """
    if os.path.lexists(path):
        names = {file.name for file in path.iterdir()} if path.is_dir() else {path.name}
        ours = again in names and all(name == again or name.endswith(".png") for name in names)
        if path.is_symlink() or not path.is_dir() or (names and not ours):
            raise ValueError(
                f"{path} holds files already, and none is written over: name a folder that is empty or new"
            )
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as scratch:
            part = Path(scratch) / "new"
            part.mkdir()
            yield part
            if path.is_dir():
                os.replace(path, Path(scratch) / "old")
            os.replace(part, path)


@contextmanager
def writing(path: Path, way_out: str = "make room, or name another place") -> Iterator[None]:
    """What the system refuses, on a full disk say, as one line. torch and safetensors have own errors for it."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError):
            why = error.strerror or reason(error)
        elif re.search("inline_container|os error|Parent directory", str(error)):
            why = "is the disk full?" if "unexpected pos" in str(error) else reason(error)[:200]
        else:
            raise
        raise ValueError(f"cannot write {path} ({why}): {way_out}") from error


def read_jsonl(path: Path, key: str) -> tuple[list[dict[str, Any]], int]:
    """Rows of a file of JSON objects, one a line, by ``key``; of several rows with one key the last values count,
    as a resumed run writes them again.

    Returns:
        The rows in order of ``key``, and the number of lines that are no such row.
    """
    rows: dict[float, dict[str, Any]] = {}
    broken = 0
    for line in path.read_text(errors="replace").splitlines():
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            position = float(row[key])
            rows[position] = rows.get(position, {}) | row
        except (ValueError, KeyError, TypeError):
            broken += 1
    return [rows[position] for position in sorted(rows)], broken


def drop_epochs(path: Path, epoch: int) -> None:
    """Take the rows of ``epoch`` and later out of a .csv file, where there is one: a resumed run writes them again."""
    if not path.is_file():
        return
    with path.open(newline="") as file:
        lines = list(csv.reader(file))
    with atomic_path(path) as part, part.open("w", newline="") as file:
        kept = {"epoch", *map(str, range(epoch))}
        csv.writer(file).writerows(row for row in lines if row and row[0] in kept)


def config_folder(host: str) -> Path:
    """Folder of the configs of a host, "timm" or "fastreid": in the installed package, or at the root of a clone."""
    package = Path(mbj_plugin.__file__).parent
    folders = [package / "configs" / host, package.parent / "configs" / host]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def find_config(name: str, host: str, suffix: str) -> Path:
    """Path of a config: a file, or the name of one that comes with the plugin, with or without its suffix.

    Raises:
        ValueError: for a name that is neither, with the names there are.
    """
    if Path(name).is_file():
        return Path(name)
    # timm's base of others trains nothing by itself.
    shipped = {p.stem: p for p in sorted(config_folder(host).glob(f"*{suffix}")) if not p.stem.startswith("base_")}
    if (path := shipped.get(name.removesuffix(suffix))) is not None:
        return path
    raise ValueError(f"no config {name!r}: it is no file, and those that come with mbj_plugin are {', '.join(shipped)}")
