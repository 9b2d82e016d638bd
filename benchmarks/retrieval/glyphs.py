"""Renders the glyphs of many fonts as a re-ID data set: a character is an identity, a font family is a camera.

Not photographs, but identities with an image of each of about seventy designs: heads as long as Market-1501's.
Training characters are Latin, test characters Greek and Cyrillic.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.retrieval.characters import PARTS, Glyphs
from benchmarks.retrieval.market_layout import write_images

SIDE = 35  # pixels, as Omniglot's
OVERSAMPLED = 3 * SIDE  # drawn at, then averaged in blocks
CAPITAL, BASELINE = 0.48, 0.7  # height of an H, and where it stands, in sides
QUERY_SHARE = 0.2  # of the families
#: A character that this share of the families draws exactly as an earlier one (Α as A) is no identity of its own.
ALIKE = 0.1
#: Of two families whose images have this cosine or more (Arimo and Liberation Sans) one is taken.
SAME_DESIGN = 0.95


def _between(*ranges: str) -> list[str]:
    return [chr(code) for pair in ranges for code in range(ord(pair[0]), ord(pair[1]) + 1)]


LATIN = _between("09", "AZ", "az", "ÀÖ", "Øö", "øň", "Ŋž")
OTHERS = _between("ΑΡ", "ΣΩ", "αω", "ЁЌ", "Ўя", "ёќ", "ўџ")
CHARACTERS = LATIN + OTHERS
MISSING = "\uffff"  # never a character: a font draws it as it draws what it lacks
REGULAR = ("regular", "book", "roman", "medium", "normal")


@dataclasses.dataclass(frozen=True)
class Rendered:
    """Every family's images of every character that stays."""

    families: list[str]
    characters: list[str]
    images: np.ndarray  # (families, characters, SIDE, SIDE) uint8, ink = 255


def render(folder: str | Path) -> Rendered:
    """Render the characters in one face of each family below ``folder``.

    A family is left out where it lacks a character, draws two characters of one part exactly alike, or has the design
    of one before it. Families come in the order of their names.

    Args:
        folder: of ``.ttf`` and ``.otf`` files, at any depth.

    Raises:
        ValueError: where fewer than two families remain.
    """
    too_few = ValueError(
        f"{folder} must hold .ttf or .otf files of two families and more with Latin, Greek and Cyrillic"
    )
    drawn = {family: images for family, file in _faces(folder).items() if (images := _drawn(file)) is not None}
    if not drawn:
        raise too_few
    kept = _own_characters(np.stack(list(drawn.values())))
    latin = np.arange(len(CHARACTERS)) < len(LATIN)
    chosen: dict[str, np.ndarray] = {}
    for family, images in drawn.items():
        apart = all(len(np.unique(images[kept & part], axis=0)) == (kept & part).sum() for part in (latin, ~latin))
        if apart and all(_cosine(images[kept], other) < SAME_DESIGN for other in chosen.values()):
            chosen[family] = images[kept]
    if len(chosen) < 2:
        raise too_few
    characters = [character for character, keep in zip(CHARACTERS, kept, strict=True) if keep]
    return Rendered(list(chosen), characters, np.stack(list(chosen.values())))


def _faces(folder: str | Path) -> dict[str, Path]:
    """One file of each family, a regular one where there is one, by the family's name."""
    found: dict[str, list[tuple[bool, str, Path]]] = {}
    for file in Path(folder).rglob("*"):
        if file.suffix.lower() in (".ttf", ".otf"):
            try:
                family, style = ImageFont.truetype(str(file)).getname()
            except OSError:  # not one that FreeType reads
                continue
            style = (style or "").lower()
            found.setdefault(family or file.stem, []).append((style not in REGULAR, style, file))
    return {family: min(files)[2] for family, files in sorted(found.items())}


def _drawn(file: Path) -> np.ndarray | None:
    """(characters, SIDE, SIDE) uint8, or None for a face that lacks one of them."""
    try:
        height = -ImageFont.truetype(str(file), 100).getbbox("H", anchor="ls")[1]
        if height <= 0:
            return None
        font = ImageFont.truetype(str(file), round(100 * CAPITAL * OVERSAMPLED / height))
        images = [_draw(font, character) for character in (MISSING, *CHARACTERS)]
    except OSError:  # a bitmap font, without this size
        return None
    lacks = any(not image.any() or np.array_equal(image, images[0]) for image in images[1:])
    return None if lacks else np.stack(images[1:])


def _draw(font: ImageFont.FreeTypeFont, character: str) -> np.ndarray:
    image = Image.new("L", (OVERSAMPLED, OVERSAMPLED))
    place = (OVERSAMPLED / 2, OVERSAMPLED * BASELINE)
    ImageDraw.Draw(image).text(place, character, fill=255, font=font, anchor="ms")
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))


def _own_characters(images: np.ndarray) -> np.ndarray:
    """(characters,) bool: those that few families draw exactly as an earlier one.

    Args:
        images: (families, characters, SIDE, SIDE).
    """
    copies = np.ones(images.shape[:2])
    for of_family, family in zip(copies, images, strict=True):
        of_family[np.unique(family, axis=0, return_index=True)[1]] = 0  # the first of each shape
    return copies.mean(0) < ALIKE


def _cosine(images: np.ndarray, others: np.ndarray) -> float:
    a, b = images.ravel().astype(float), others.ravel().astype(float)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def write_dataset(folder: str | Path, root: str | Path, seed: int = 0) -> tuple[Path, Rendered]:
    """Write the set in the folder layout of Market-1501, below ``root``, as ``IDENTITY_cFAMILY_CODE.png``.

    Identities are numbered in a random order: editions rank identities of one size by name, and the head must not be
    one alphabet.

    Args:
        folder: of fonts, see :func:`render`.
        root: folder that FASTREID_DATASETS names.
        seed: of the numbering, and of which families are the queries.

    Returns:
        The set's folder, and what was rendered.

    Raises:
        ValueError: for a folder with too few fonts, or a set that is there already.
    """
    rendered = render(folder)
    return write_images(root, Glyphs, _images(rendered, seed)), rendered


def _images(rendered: Rendered, seed: int) -> Iterator[tuple[str, str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    numbers = rng.permutation(len(rendered.characters)).tolist()
    queries = rng.permutation(len(rendered.families))[: max(1, round(QUERY_SHARE * len(rendered.families)))].tolist()
    for family, images in enumerate(rendered.images):
        for number, character, image in zip(numbers, rendered.characters, images, strict=True):
            part = PARTS[0] if character in LATIN else PARTS[1] if family in queries else PARTS[2]
            yield part, f"{number:04d}_c{family:03d}_U{ord(character):04X}.png", image
