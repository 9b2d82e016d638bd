"""Writes Omniglot's background set as a re-ID data set, from the authors' images_background.zip or one .npz file."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from benchmarks.retrieval.characters import PARTS, Omniglot, OmniglotVal
from benchmarks.retrieval.market_layout import write_images

SIDE, ALPHABETS, DRAWERS = 105, 30, 20
# Alphabets for training, and for test.
SPLITS = {Omniglot: (range(0, 20), range(20, 30)), OmniglotVal: (range(0, 15), range(15, 20))}
QUERY_DRAWERS = 4
SHRINK = 3  # blocks of 3 x 3 pixels are averaged into one: 35 x 35


class Drawings(NamedTuple):
    """N drawings. A character's number is its own over all alphabets."""

    images_packed: np.ndarray  # (N, 1379) uint8, the 105 x 105 bits of each image, ink = 1
    character: np.ndarray  # (N,) integers from 0
    drawer: np.ndarray  # (N,) integers from 0 to 19
    alphabet: np.ndarray  # (N,) integers from 0 to 29
    alphabet_names: np.ndarray  # (30,) text

    @property
    def ink(self) -> np.ndarray:
        """(N, 105, 105) uint8, 1 = ink."""
        return np.unpackbits(self.images_packed, axis=1, count=SIDE * SIDE).reshape(-1, SIDE, SIDE)


def read_drawings(path: str | Path) -> Drawings:
    """Read and check the set.

    Args:
        path: ``images_background.zip`` (https://github.com/brendenlake/omniglot/tree/master/python), or an ``.npz`` of
            the arrays of :class:`Drawings`.

    Raises:
        ValueError: for a file that cannot be read, lacks an array, or does not hold each character of the 30 alphabets
            once per drawer.
    """
    try:
        data = _from_zip(path) if _holds_images(path) else _from_npz(path)
    except (OSError, EOFError, TypeError, AttributeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"cannot read {path} as Omniglot's images_background.zip or an .npz of it: {error}") from error
    _check(data, path)
    return data


def _holds_images(path: str | Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith(".png") for name in archive.namelist())


def _from_npz(path: str | Path) -> Drawings:
    with np.load(path) as arrays:
        if missing := [name for name in Drawings._fields if name not in arrays]:
            raise ValueError(f"it lacks the arrays {missing} of {', '.join(Drawings._fields)}")
        return Drawings(*(arrays[name] for name in Drawings._fields))


def _from_zip(path: str | Path) -> Drawings:
    """ALPHABET/characterNN/NNNN_DD.png, below any folder; alphabets and characters are numbered by name."""
    pattern = re.compile(r"(?:^|/)([^/]+)/(character\d+)/\d+_(\d+)\.png$")
    with zipfile.ZipFile(path) as archive:
        found = [(match, name) for name in sorted(archive.namelist()) if (match := pattern.search(name))]
        if not found:
            raise ValueError("it has no file ALPHABET/characterNN/NNNN_DD.png")
        # Ink is black there, which is False in a 1-bit image.
        images = [~np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("1")) for _, name in found]
    alphabets = np.array([match[1] for match, _ in found])
    characters = np.array([f"{match[1]}/{match[2]}" for match, _ in found])
    names, alphabet = np.unique(alphabets, return_inverse=True)
    return Drawings(
        images_packed=np.packbits(np.stack(images).reshape(len(images), -1), axis=1),
        character=np.unique(characters, return_inverse=True)[1],
        drawer=np.array([int(match[3]) - 1 for match, _ in found]),
        alphabet=alphabet,
        alphabet_names=names,
    )


def _check(data: Drawings, path: str | Path) -> None:
    """Raise ValueError unless each character, of one alphabet, was drawn once by each of the people."""
    columns, shape = (data.character, data.drawer, data.alphabet), (len(data.images_packed), -(-SIDE * SIDE // 8))
    whole = data.images_packed.shape == shape and data.images_packed.dtype == np.uint8
    if whole := whole and all(column.shape == shape[:1] and column.dtype.kind in "iu" for column in columns):
        character, drawer, alphabet = (column.astype(int) for column in columns)
        of_alphabets, drawings = ({*zip(character, other, strict=True)} for other in (alphabet, drawer))
        whole = len(drawings) == shape[0] == DRAWERS * len(of_alphabets) == DRAWERS * len({*character})
        whole = whole and {*alphabet} == {*range(ALPHABETS)} and {*drawer} == {*range(DRAWERS)} and min(character) >= 0
    if not whole:
        raise ValueError(
            f"{path} is not the whole set: it must hold each character of {ALPHABETS} alphabets once by each of "
            f"{DRAWERS} people, {shape[1]} uint8 an image, all numbered from 0"
        )


def write_dataset(archive: str | Path, root: str | Path, kind: type[Omniglot] = Omniglot, seed: int = 0) -> Path:
    """Write the images of ``kind`` in the folder layout of Market-1501, below ``root``.

    Ink is white on black, 35 x 35 pixels. A file is called ``IDENTITY_cDRAWER_ALPHABET-CHARACTER.png``. Identities are
    numbered in a random order: editions rank identities of one size by name, and the head must not be one alphabet.

    Args:
        archive: what :func:`read_drawings` reads.
        root: folder that FASTREID_DATASETS names.
        kind: one of the two data sets.
        seed: of the numbering.

    Returns:
        The set's folder.

    Raises:
        ValueError: for an archive that is not the set, or a set that is there already.
    """
    return write_images(root, kind, _images(read_drawings(archive), kind, seed))


def _images(data: Drawings, kind: type[Omniglot], seed: int) -> Iterator[tuple[str, str, np.ndarray]]:
    numbers = np.random.default_rng(seed).permutation(int(data.character.max()) + 1)
    pixels = data.ink.reshape(-1, SIDE // SHRINK, SHRINK, SIDE // SHRINK, SHRINK).mean((2, 4))
    train, test = SPLITS[kind]
    columns = (column.tolist() for column in (data.character, data.drawer, data.alphabet))
    for image, character, drawer, alphabet in zip(pixels, *columns, strict=True):
        if alphabet in train:
            part = PARTS[0]
        elif alphabet in test:
            part = PARTS[1] if drawer < QUERY_DRAWERS else PARTS[2]
        else:
            continue
        name = re.sub(r"\W+", "", str(data.alphabet_names[alphabet]))
        file = f"{numbers[character]:04d}_c{drawer:02d}_{name}-{character:03d}.png"
        yield part, file, np.round(255 * image).astype(np.uint8)
