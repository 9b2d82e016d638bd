"""The folder layout of Market-1501, which `benchmarks.retrieval.characters.Omniglot` and its kind read."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.retrieval.characters import PARTS, Omniglot


def write_images(root: str | Path, kind: type[Omniglot], images: Iterable[tuple[str, str, np.ndarray]]) -> Path:
    """Write a data set below ``root``, whole or not at all.

    Args:
        root: folder that FASTREID_DATASETS names.
        kind: the class that will read it.
        images: one of the three parts, file name, and (height, width) uint8, one by one.

    Returns:
        The set's folder.

    Raises:
        ValueError: for a set that is there already.
    """
    written = Path(root) / kind.dataset_name
    if written.exists():
        raise ValueError(f"{written} is there already: remove it, or give another folder")
    folder = written.with_name(written.name + ".unfinished")  # a set that was cut short must not look whole
    shutil.rmtree(folder, ignore_errors=True)
    for part in PARTS:
        (folder / part).mkdir(parents=True)
    for part, file, pixels in images:
        Image.fromarray(pixels).save(folder / part / file)
    folder.rename(written)
    return written
