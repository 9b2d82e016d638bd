"""Files of a run and of the package: written whole or not at all, read line by line, found by name."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mbj_plugin


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to, which replaces it at the end. What goes wrong leaves ``path`` as it was."""
    part = path.with_name(path.name + ".part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with whole(path) as part:
        part.write_text(text)


def read_jsonl(path: Path, key: str) -> tuple[list[dict[str, Any]], int]:
    """Rows of a file of JSON objects, one a line, by ``key``; of several rows with one key the last counts, as a
    resumed run writes them again.

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
            rows[float(row[key])] = row
        except (ValueError, KeyError, TypeError):
            broken += 1
    return [rows[position] for position in sorted(rows)], broken


def drop_epochs(path: Path, epoch: int) -> None:
    """Take the rows of ``epoch`` and later out of a .csv or .jsonl file, where there is one: a resumed run writes them
    again. Lines that are no row of an epoch go too."""
    if not path.is_file():
        return
    with whole(path) as part:
        if path.suffix == ".jsonl":
            rows, _ = read_jsonl(path, "epoch")
            part.write_text("".join(json.dumps(row) + "\n" for row in rows if float(row["epoch"]) < epoch))
            return
        with path.open(newline="") as file:
            lines = list(csv.reader(file))
        with part.open("w", newline="") as file:
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
