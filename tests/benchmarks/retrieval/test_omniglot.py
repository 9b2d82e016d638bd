"""Omniglot in Market-1501's layout, from an archive that is drawn here."""

import io
import zipfile

import numpy as np
import pytest
from fastreid.data.datasets import DATASET_REGISTRY
from PIL import Image

from benchmarks.retrieval.characters import Omniglot, OmniglotVal
from benchmarks.retrieval.omniglot import SIDE, read_drawings, write_dataset


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    """Two characters of each of 30 alphabets, drawn by 20 people: a few pixels of ink each."""
    characters, drawers = 60, 20
    rng = np.random.default_rng(0)
    images = np.zeros((characters * drawers, SIDE * SIDE), dtype=np.uint8)
    images[np.arange(len(images))[:, None], rng.integers(0, SIDE * SIDE, (len(images), 5))] = 1
    images[0] = 0
    images[0].reshape(SIDE, SIDE)[3:6, 6:9] = [[1, 1, 1], [1, 1, 1], [0, 0, 0]]  # block (1, 2), two thirds ink
    character = np.repeat(np.arange(characters), drawers)
    path = tmp_path_factory.mktemp("omniglot") / "omniglot.npz"
    np.savez(
        path,
        images_packed=np.packbits(images, axis=1),
        character=character.astype(np.uint16),
        drawer=np.tile(np.arange(drawers), characters).astype(np.uint8),
        alphabet=(character // 2).astype(np.uint8),
        alphabet_names=np.array([f"Alphabet ({n})" for n in range(30)]),
    )
    return path


@pytest.fixture(scope="module")
def root(npz, tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    for kind in (Omniglot, OmniglotVal):
        write_dataset(npz, root, kind)
    return root


def test_pixels_are_means_of_blocks(root):
    (path,) = (root / "omniglot" / "bounding_box_train").glob("*_c00_Alphabet0-000.png")
    pixels = np.asarray(Image.open(path))
    assert pixels.shape == (35, 35)
    assert pixels[1, 2] == 170 and pixels.sum() == 170


@pytest.mark.parametrize(("kind", "train", "test"), [(Omniglot, 20, 10), (OmniglotVal, 15, 5)])
def test_alphabets_and_drawers_are_apart(root, kind, train, test):
    dataset = DATASET_REGISTRY.get(kind.__name__)(root=str(root))
    alphabet = lambda items: {int(path.split("Alphabet")[1].split("-")[0]) for path, _, _ in items}  # noqa: E731
    assert alphabet(dataset.train) == set(range(train))
    assert alphabet(dataset.query) == alphabet(dataset.gallery) == set(range(train, train + test))
    assert {camera for _, _, camera in dataset.query} == set(range(4))
    assert {camera for _, _, camera in dataset.gallery} == set(range(4, 20))
    assert len(dataset.train) == 2 * train * 20 and len(dataset.query) == 2 * test * 4
    assert not {identity for _, identity, _ in dataset.query} & {
        int(name.split("_")[1]) for _, name, _ in dataset.train
    }


def test_the_head_is_not_the_first_alphabets(root):
    dataset = DATASET_REGISTRY.get("Omniglot_LT_H20_S5")(root=str(root))
    images = [name for _, name, _ in dataset.train]
    assert sorted({images.count(name) for name in images}) == [5, 20] and len(images) == 20 * 20 + 20 * 5
    head = {int(path[-7:-4]) for path, name, _ in dataset.train if images.count(name) == 20}
    numbers = np.random.default_rng(0).permutation(60)
    assert head == set(sorted(range(40), key=lambda character: f"omniglot_{numbers[character]}")[:20])
    assert head != set(sorted(range(40), key=str)[:20]) and head != set(range(20))


def test_a_wrong_archive_is_a_clear_error(tmp_path):
    with pytest.raises(ValueError, match="cannot read"):
        write_dataset(tmp_path / "none.npz", tmp_path)
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    (tmp_path / "empty.npz").touch()
    np.save(tmp_path / "array.npy", np.zeros(3))
    for name in ("empty.npz", "array.npy"):
        with pytest.raises(ValueError, match="cannot read"):
            write_dataset(tmp_path / name, tmp_path)
    with pytest.raises(ValueError, match=r"lacks the arrays \['images_packed'"):
        write_dataset(tmp_path / "other.npz", tmp_path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("character", lambda c: c % 2),  # of several alphabets
        ("character", lambda c: c + 0.5),
        ("character", lambda c: c.astype(int) - 1),
        ("images_packed", lambda x: x[:, :500]),
        ("images_packed", lambda x: x.astype(int)),
        ("alphabet", lambda a: a + 1),
        ("drawer", lambda d: d[:-1]),
        ("drawer", lambda d: d + 1),
        ("drawer", lambda d: d // 2),  # somebody has drawn a character twice
        (("images_packed", "character", "drawer", "alphabet"), lambda x: np.delete(x, 105, axis=0)),
    ],
)
def test_an_archive_that_would_make_a_wrong_set_is_refused(npz, tmp_path, name, change):
    data = dict(np.load(npz))
    for each in [name] if isinstance(name, str) else name:
        data[each] = change(data[each])
    np.savez(tmp_path / "wrong.npz", **data)
    with pytest.raises(ValueError, match=r"wrong\.npz is not the whole set"):
        write_dataset(tmp_path / "wrong.npz", tmp_path)
    assert not (tmp_path / "omniglot").exists()


def test_the_authors_zip_is_the_same_set(npz, tmp_path):
    data = read_drawings(npz)
    names = np.array([f"Alphabet_{n:02d}_(old)" for n in range(30)])  # sorted, as they are numbered
    with zipfile.ZipFile(tmp_path / "images_background.zip", "w") as archive:
        for number, image in enumerate(data.ink):
            folder = f"{names[data.alphabet[number]]}/character{data.character[number] % 2 + 1:02d}"
            file = io.BytesIO()
            Image.fromarray(image == 0).save(file, "png")  # 1 bit, ink is black
            path = f"images_background/{folder}/{number // 20:04d}_{data.drawer[number] + 1:02d}.png"
            archive.writestr(path, file.getvalue())
    same = read_drawings(tmp_path / "images_background.zip")
    for name, array in data._replace(alphabet_names=names)._asdict().items():
        np.testing.assert_array_equal(getattr(same, name), array)


def test_a_set_is_written_whole_or_not_at_all(npz, root, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="omniglot is there already"):
        write_dataset(npz, root)
    saved = []
    monkeypatch.setattr(Image.Image, "save", lambda image, path: saved.append(path) if len(saved) < 5 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_dataset(npz, tmp_path)
    assert not (tmp_path / "omniglot").exists()
    monkeypatch.undo()
    assert len(list(write_dataset(npz, tmp_path).glob("*/*.png"))) == 60 * 20


def test_a_set_that_is_missing_says_how_to_write_it(tmp_path):
    for name in ("Omniglot", "OmniglotVal_LT_H50_S5"):
        with pytest.raises(FileNotFoundError, match=r"write_omniglot\.py.*FASTREID_DATASETS"):
            DATASET_REGISTRY.get(name)(root=str(tmp_path))


def test_a_foreign_image_is_named(tmp_path):
    for part in ("bounding_box_train", "query", "bounding_box_test"):
        (tmp_path / "omniglot" / part).mkdir(parents=True)
    (tmp_path / "omniglot" / "query" / "photo.png").touch()
    with pytest.raises(ValueError, match=r"photo\.png is not called IDENTITY_cCAMERA"):
        len(Omniglot(root=str(tmp_path)).query)  # read when it is asked for
