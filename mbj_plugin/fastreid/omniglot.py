"""Omniglot's background set as a re-ID data set: a character is an identity, a drawer is a camera.

Real images that anybody may use (B. Lake et al., Science 2015, MIT licence). 20 people drew every character once, so an
<H, S> edition cuts all characters but H from 20 images to S. Test characters are of other alphabets than training ones.
"""

from __future__ import annotations

import os
import re
import shutil
from glob import glob
from pathlib import Path

import numpy as np
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset
from PIL import Image

from mbj_plugin.fastreid.omniglot_archive import SIDE, read_drawings

PARTS = ("bounding_box_train", "query", "bounding_box_test")
QUERY_DRAWERS = 4
SHRINK = 3  # blocks of 3 x 3 pixels are averaged into one: 35 x 35


@DATASET_REGISTRY.register()
class Omniglot(ImageDataset):
    """The first 20 alphabets for training, the last 10 for test; drawers 0-3 of these are the queries."""

    dataset_name = "omniglot"
    train_alphabets = range(0, 20)
    test_alphabets = range(20, 30)

    def __init__(self, root: str = "datasets", **kwargs) -> None:
        folder = Path(root) / self.dataset_name
        train, query, gallery = (str(folder / part) for part in PARTS)
        self.check_before_run([train, query, gallery])
        super().__init__(
            lambda: self.process_dir(train),
            lambda: self.process_dir(query, is_train=False),
            lambda: self.process_dir(gallery, is_train=False),
            **kwargs,
        )

    def check_before_run(self, required_files: list[str]) -> None:
        """Raises FileNotFoundError where a folder is missing, and says how to make it."""
        for path in required_files:
            if not os.path.isdir(path):
                raise FileNotFoundError(
                    f"{path} is not there: write it by `python tools/write_omniglot.py ARCHIVE ROOT`, and set the "
                    "environment variable FASTREID_DATASETS to ROOT (default: ./datasets)"
                )

    def process_dir(self, dir_path: str, is_train: bool = True) -> list[tuple]:
        """(path, identity, camera) of each image; of the training set as text, as fast-reid's sets have it."""
        items = []
        for path in sorted(glob(os.path.join(dir_path, "*.png"))):
            name = re.match(r"(\d+)_c(\d+)_", os.path.basename(path))
            if name is None:
                raise ValueError(f"{path} is not called IDENTITY_cDRAWER_ALPHABET-CHARACTER.png: take it out of there")
            identity, camera = map(int, name.groups())
            named = (f"{self.dataset_name}_{identity}", f"{self.dataset_name}_{camera}")
            items.append((path, *named) if is_train else (path, identity, camera))
        return items


@DATASET_REGISTRY.register()
class OmniglotVal(Omniglot):
    """Validation, for choices: the first 15 alphabets for training, the next 5 for test."""

    dataset_name = "omniglot-validation"
    train_alphabets = range(0, 15)
    test_alphabets = range(15, 20)


def write_dataset(archive: str | Path, root: str | Path, kind: type[Omniglot] = Omniglot, seed: int = 0) -> Path:
    """Write the images of ``kind`` in the folder layout of Market-1501, below ``root``.

    Ink is white on black, 35 x 35 pixels. A file is called ``IDENTITY_cDRAWER_ALPHABET-CHARACTER.png``. Identities are
    numbered in a random order: editions rank identities of one size by name, and the head must not be one alphabet.

    Args:
        archive: what :func:`~mbj_plugin.fastreid.omniglot_archive.read_drawings` reads.
        root: folder that FASTREID_DATASETS names.
        kind: :class:`Omniglot` or :class:`OmniglotVal`.
        seed: of the numbering.

    Returns:
        The set's folder.

    Raises:
        ValueError: for an archive that is not the set, or a set that is there already.
    """
    data = read_drawings(archive)
    written = Path(root) / kind.dataset_name
    if written.exists():
        raise ValueError(f"{written} is there already: remove it, or give another folder")
    folder = written.with_name(written.name + ".unfinished")  # a set that was cut short must not look whole
    shutil.rmtree(folder, ignore_errors=True)
    for part in PARTS:
        (folder / part).mkdir(parents=True)
    numbers = np.random.default_rng(seed).permutation(int(data.character.max()) + 1)
    pixels = data.ink.reshape(-1, SIDE // SHRINK, SHRINK, SIDE // SHRINK, SHRINK).mean((2, 4))
    columns = (column.tolist() for column in (data.character, data.drawer, data.alphabet))
    for image, character, drawer, alphabet in zip(pixels, *columns, strict=True):
        if alphabet in kind.train_alphabets:
            part = PARTS[0]
        elif alphabet in kind.test_alphabets:
            part = PARTS[1] if drawer < QUERY_DRAWERS else PARTS[2]
        else:
            continue
        name = re.sub(r"\W+", "", str(data.alphabet_names[alphabet]))
        file = f"{numbers[character]:04d}_c{drawer:02d}_{name}-{character:03d}.png"
        Image.fromarray(np.round(255 * image).astype(np.uint8)).save(folder / part / file)
    folder.rename(written)
    return written
