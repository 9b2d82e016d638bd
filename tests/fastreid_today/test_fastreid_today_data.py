"""Data sets that are missing or cannot be searched, and images that cannot be read, are named."""

import shutil

import pytest
from fastreid.data.datasets import DATASET_REGISTRY
from PIL import Image

from benchmarks.retrieval.synthetic import FOLDER


def test_a_finished_run_resumed(make_trainer):
    make_trainer().train()
    again = make_trainer()
    again.resume_or_load(resume=True)
    with pytest.raises(ValueError, match="2 epochs behind it and SOLVER.MAX_EPOCH is 2.*raise MAX_EPOCH"):
        again.train()


def no_training(trainer):
    trainer.run_step = lambda: pytest.fail("it trains")
    return trainer.train


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (("DATASETS.TESTS", ()), ValueError, "DATASETS.TESTS is empty"),
        (("DATASETS.TESTS", ("Markt1501",)), KeyError, "no 'Markt1501' in .*DATASET, did you mean Market1501"),
        (
            ("DATASETS.TESTS", ("Market1501", "CUHK03")),
            FileNotFoundError,
            "cuhk03 is not there, .*FASTREID",
        ),
    ],
    ids=str,
)
def test_evaluations_that_would_fail(make_trainer, options, error, said):
    with pytest.raises(error, match=said):
        no_training(make_trainer("MODEL.HEADS.NAME", "EmbeddingHead", *options))()


@pytest.fixture
def copy(data_root, tmp_path, monkeypatch):
    """copy(keep, rename): the tiny set with some files, under other names; the loaders read it."""

    def make(keep=lambda part, name: True, rename=str):
        for file in (data_root / FOLDER).glob("*/*.jpg"):
            folder = tmp_path / "data" / FOLDER / file.parent.name
            folder.mkdir(parents=True, exist_ok=True)
            if keep(file.parent.name, file.name):
                shutil.copy(file, folder / rename(file.name))
        monkeypatch.setattr("fastreid.data.build._root", str(tmp_path / "data"))

    return make


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"rename": lambda name: name[:5] + "c1" + name[7:]},
            "no query has .* another camera .*1 camera in all",
        ),
        ({"keep": lambda part, name: part != "query"}, "Market1501 has 0 query and 12 gallery images, too few"),
        (
            {"keep": lambda part, name: part != "bounding_box_test" or name < "0029"},
            "12 query and 8 gallery .* 1 and",
        ),
    ],
)
def test_test_sets_that_cannot_be_searched(make_trainer, copy, change, said):
    trainer = make_trainer("MODEL.HEADS.NAME", "EmbeddingHead")
    copy(**change)
    with pytest.raises(ValueError, match=said):
        no_training(trainer)()


@pytest.mark.parametrize("name", [*DATASET_REGISTRY._obj_map])
def test_a_missing_data_set(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}.* is not there.*FASTREID_DATASETS"):
        DATASET_REGISTRY.get(name)(root=str(tmp_path))


def test_an_empty_training_set_is_named(make_trainer, monkeypatch, tmp_path):
    for part in ("bounding_box_train", "query", "bounding_box_test"):
        (tmp_path / "Market-1501-v15.09.15" / part).mkdir(parents=True)
    monkeypatch.setattr("fastreid.data.build._root", str(tmp_path))
    with pytest.raises(ValueError, match="no images.*FASTREID_DATASETS"):
        make_trainer("DATALOADER.SAMPLER_TRAIN", "NaiveIdentitySampler")


def test_an_image_that_is_cut_short(make_trainer, data_root, monkeypatch, tmp_path):
    dataset = make_trainer().data_loader.dataset
    items = list(dataset.img_items)
    image = tmp_path / "cut.jpg"
    Image.effect_noise((32, 64), 50).convert("RGB").save(image)
    image.write_bytes(image.read_bytes()[:400])
    monkeypatch.setattr(dataset, "img_items", [(str(image), *items[0][1:]), *items[1:]])
    other = next(item[0] for item in items[1:] if item[1] == items[0][1])
    assert dataset[0]["img_paths"] == other and dataset[0]["targets"] == dataset.pid_dict[items[0][1]]
    for relabel in (True, False):
        dataset.relabel = relabel
        monkeypatch.setattr(dataset, "img_items", [(str(image), "alone", 0)])
        with pytest.raises(ValueError, match="cut.jpg"):
            dataset[0]
