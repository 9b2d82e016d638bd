"""Glyphs as a re-ID set, rendered from the fonts that matplotlib ships."""

import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from fastreid.data.datasets import DATASET_REGISTRY
from fontTools.ttLib import TTFont
from PIL import Image

from benchmarks.retrieval import glyphs
from benchmarks.retrieval.glyphs import LATIN, OTHERS, SIDE, render, write_dataset

SHIPPED = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
FAMILIES = ["DejaVu Sans", "DejaVu Sans Mono", "DejaVu Serif"]


@pytest.fixture(scope="module")
def fonts(tmp_path_factory):
    """Three families with a bold or an italic face beside them, a twin of one, and fonts that cannot be used."""
    folder = tmp_path_factory.mktemp("fonts")
    (folder / "deep").mkdir()
    for file in SHIPPED.glob("DejaVuS*.ttf"):
        if "Display" not in file.name:
            shutil.copy(file, folder / "deep" / file.name)
    _named("DejaVuSerif.ttf", "Zwilling").save(folder / "twin.ttf")
    shutil.copy(SHIPPED / "cmex10.ttf", folder)  # symbols alone
    (folder / "broken.otf").write_bytes(b"not a font")
    return folder


def _named(file, family):
    font = TTFont(SHIPPED / file)
    for record in font["name"].names:
        if record.nameID in (1, 16):
            font["name"].setName(family, record.nameID, record.platformID, record.platEncID, record.langID)
    return font


@pytest.fixture(scope="module")
def rendered(fonts):
    return render(fonts)


def test_each_design_is_one_family(rendered):
    assert rendered.families == FAMILIES


def test_the_regular_face_is_taken(rendered, tmp_path):
    shutil.copy(SHIPPED / "DejaVuSans.ttf", tmp_path / "z.ttf")
    shutil.copy(SHIPPED / "DejaVuSerif.ttf", tmp_path)
    alone = render(tmp_path)
    common = [character for character in rendered.characters if character in alone.characters]
    columns = lambda r: [r.characters.index(character) for character in common]  # noqa: E731
    assert len(common) > 300
    assert (alone.images[:, columns(alone)] == rendered.images[[0, 2]][:, columns(rendered)]).all()


def test_a_character_drawn_as_an_earlier_one_is_none(rendered):
    assert {"A", "a", "ø", "ž", "Б", "ж", "Ω", "ψ"} <= set(rendered.characters)
    assert not set("ΑАВесĐ") & set(rendered.characters)  # Greek, Cyrillic, and the Croatian twin of Ð
    assert "Ð" in rendered.characters
    images = rendered.images.reshape(len(FAMILIES), len(rendered.characters), -1)
    assert all(len(np.unique(family, axis=0)) == len(family) for family in images)


def test_a_family_that_lacks_a_character_or_draws_two_alike_is_left_out(fonts, tmp_path, monkeypatch):
    monkeypatch.setattr(glyphs, "ALIKE", 0.3)  # four families are few, of which one may have a habit
    for number, name in enumerate(FAMILIES):
        shutil.copy(fonts / "deep" / f"{name.replace(' ', '')}.ttf", tmp_path / f"{number}.ttf")
    _designed(tmp_path / "stretched.ttf", "Stretched", 0.5)
    _designed(tmp_path / "unicase.ttf", "Unicase", 1.6, {"b": "B"})
    _designed(tmp_path / "greek.ttf", "Greek as Latin", 1.8, {"ψ": "p"})
    _designed(tmp_path / "short.ttf", "Short", 1.7, {"ж": None})
    found = render(tmp_path)
    assert {"b", "B", "ж", "p", "ψ"} <= set(found.characters)
    assert {"DejaVu Sans", "Stretched", "Greek as Latin"} <= set(found.families)  # two parts may share a shape
    assert not {"Unicase", "Short"} & set(found.families)


def _designed(file, family, width, same=()):
    """DejaVu Serif under another name, its outlines widened, some characters drawn as others."""
    font = _named("DejaVuSerif-Bold.ttf", family)
    for table in font["cmap"].tables:
        if table.isUnicode():
            for new, old in dict(same).items():
                table.cmap[ord(new)] = table.cmap[ord(old)] if old else ".notdef"
    outlines = font["glyf"]
    for name in font.getGlyphOrder():
        glyph = outlines[name]
        if glyph.numberOfContours > 0:
            glyph.coordinates.scale((width, 1.0))
            glyph.recalcBounds(outlines)
    font.save(file)


def test_capitals_stand_on_one_line_with_one_height(rendered):
    letter = rendered.images[:, rendered.characters.index("H")]
    rows = [np.flatnonzero(image.max(1) > 127) for image in letter]
    assert {row[-1] for row in rows} == {23} and {len(row) for row in rows} <= {16, 17}
    columns = np.flatnonzero(letter[0].max(0) > 127)
    assert abs(columns.mean() - (SIDE - 1) / 2) <= 1
    assert letter.max() == 255 and letter[:, 0, 0].max() == 0


def test_scripts_and_families_are_apart(fonts, rendered, tmp_path):
    written, _ = write_dataset(fonts, tmp_path)
    dataset = DATASET_REGISTRY.get("Glyphs")(root=str(tmp_path))
    character = lambda items: {chr(int(path[-8:-4], 16)) for path, _, _ in items}  # noqa: E731
    assert character(dataset.train) == set(rendered.characters) & set(LATIN)
    assert character(dataset.query) == character(dataset.gallery) == set(rendered.characters) & set(OTHERS)
    assert len({camera for _, _, camera in dataset.query}) == 1
    assert {c for _, _, c in dataset.query} | {c for _, _, c in dataset.gallery} == set(range(3))
    assert not {c for _, _, c in dataset.query} & {c for _, _, c in dataset.gallery}
    path, identity, camera = dataset.gallery[0]
    number = rendered.characters.index(chr(int(path[-8:-4], 16)))
    assert (np.asarray(Image.open(path)) == rendered.images[camera, number]).all()
    order = np.random.default_rng(0).permutation(len(rendered.characters))
    assert identity == order[number]
    with pytest.raises(ValueError, match=r"glyphs is there already: remove it, or give another folder"):
        write_dataset(fonts, tmp_path)
    assert written == tmp_path / "glyphs"


def test_an_edition_by_its_name(fonts, tmp_path):
    write_dataset(fonts, tmp_path)
    train = [name for _, name, _ in DATASET_REGISTRY.get("Glyphs_LT_H7_S2")(root=str(tmp_path)).train]
    sizes = sorted(train.count(name) for name in set(train))
    assert sizes[-7:] == [3] * 7 and set(sizes[:-7]) == {2}


def test_too_few_fonts_are_a_clear_error(tmp_path):
    shutil.copy(SHIPPED / "DejaVuSans.ttf", tmp_path)
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match=r"must hold \.ttf or \.otf files of two families and more"):
            render(folder)


def test_images_that_are_not_there_name_their_writer(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"write_glyphs\.py FONTS ROOT"):
        DATASET_REGISTRY.get("Glyphs")(root=str(tmp_path))
