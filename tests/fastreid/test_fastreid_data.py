"""Class counts from the loader, the long-tailed editions, and the synthetic set they are tried on."""

import collections
import hashlib
import os
import shutil

import pytest
import torch
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset

from benchmarks.retrieval import synthetic
from mbj_plugin.fastreid.collect import mbj_heads
from mbj_plugin.fastreid.counts import class_counts
from mbj_plugin.fastreid.datasets import register_edition
from mbj_plugin.functional import sampling_probs

IMAGES = 72  # of the tiny set: 4 identities with 8, 20 with 2


def test_counts_come_from_the_trainers_loader(make_trainer):
    trainer = make_trainer()
    head = mbj_heads(trainer.model)[0]
    counts = class_counts(trainer.data_loader.dataset, 24)
    assert counts.sum() == IMAGES and sorted(counts.tolist()) == [2] * 20 + [8] * 4
    # Labels sort as strings: market1501_10 comes before market1501_2.
    assert counts[:4].tolist() == [8, 2, 2, 2]
    assert torch.equal(head.memories["prototype"].probs, sampling_probs(counts, norm="max"))


def test_counts_do_not_depend_on_the_sampler(make_trainer):
    first = mbj_heads(make_trainer().model)[0].memories["prototype"].probs
    sampler = ("DATALOADER.SAMPLER_TRAIN", "BalancedIdentitySampler", "DATALOADER.NUM_INSTANCE", 2)
    assert torch.equal(mbj_heads(make_trainer(*sampler).model)[0].memories["prototype"].probs, first)


def test_more_classes_than_labels_are_fine(make_trainer, steps):
    trainer = make_trainer("MODEL.HEADS.NUM_CLASSES", 30)
    assert mbj_heads(trainer.model)[0].memories["prototype"].probs[24:].eq(0).all()
    assert "loss_mbj" in steps(trainer, 1)[0]


def _digest(folder):
    files = sorted(path for path in folder.rglob("*.jpg"))
    content = b"".join(str(path.relative_to(folder)).encode() + path.read_bytes() for path in files)
    return hashlib.sha256(content).hexdigest(), len(files)


def test_the_synthetic_set_is_the_same_everywhere(data_root, tiny_plan, tmp_path):
    synthetic.draw_dataset(tmp_path, tiny_plan)
    assert _digest(tmp_path) == _digest(data_root)
    assert _digest(tmp_path)[1] == IMAGES + tiny_plan.test * tiny_plan.test_images


@pytest.fixture
def long_tailed(data_root):
    """An edition <H2, S5> of the tiny set whose head has 8 images; registered ones need 20 identities and more."""
    from fastreid.data.datasets.market1501 import Market1501

    return DATASET_REGISTRY.get(register_edition(Market1501, 2))


def names(items):
    return [os.path.basename(path) for path, _, _ in items]


def test_editions_keep_the_head_and_cut_the_tail(long_tailed, data_root):
    edition = long_tailed(root=str(data_root))
    whole = DATASET_REGISTRY.get("Market1501")(root=str(data_root))
    counts = collections.Counter(identity for _, identity, _ in edition.train)
    assert sorted(counts.values()) == [2] * 20 + [5, 5, 8, 8]
    assert sorted(names(edition.query)) == sorted(names(whole.query))
    assert sorted(names(edition.gallery)) == sorted(names(whole.gallery))


def test_editions_do_not_depend_on_where_the_files_lie(long_tailed, data_root, tmp_path):
    copy = tmp_path / "elsewhere" / synthetic.FOLDER
    for part in ("bounding_box_train", "query", "bounding_box_test"):
        (copy / part).mkdir(parents=True)
        # Another order of creation is another order of listing.
        for file in sorted((data_root / synthetic.FOLDER / part).iterdir(), reverse=True):
            shutil.copy(file, copy / part)
    here, there = long_tailed(root=str(data_root)), long_tailed(root=str(copy.parent))
    assert names(here.train) == names(there.train)


def test_any_edition_can_be_registered(data_root):
    market = DATASET_REGISTRY.get("Market1501")
    whole = market(root=str(data_root)).train
    name = register_edition(market, 24)  # as many heads as identities: nothing is cut
    assert name == register_edition(market, 24) == "Market1501_LT_H24_S5"
    assert sorted(DATASET_REGISTRY.get(name)(root=str(data_root)).train) == sorted(whole)
    few = DATASET_REGISTRY.get(register_edition(market, 0, 1))(root=str(data_root)).train
    assert len(few) == len({item[1] for item in whole})
    for num_head, tail_size in ((0, 0), (-1, 5), (20.5, 5), (True, 5), ("20", 5), (20, 2.5)):
        with pytest.raises(ValueError, match="whole numbers H >= 0 and S >= 1, got <"):
            register_edition(market, num_head, tail_size)
    with pytest.raises(ValueError, match="Market1501_LT_H24_S5 is an edition of another data set Market1501"):
        register_edition(type("Market1501", (ImageDataset,), {}), 24)


def test_any_edition_goes_by_its_name(make_trainer, data_root):
    trainer = make_trainer("DATASETS.NAMES", ("Market1501_LT_H3_S2",))
    assert sorted(collections.Counter(item[1] for item in trainer.data_loader.dataset.img_items).values()) == (
        [2] * 21 + [8] * 3
    )
    edition = DATASET_REGISTRY.get("Market1501_LT_H3_S2")
    assert edition is DATASET_REGISTRY.get("Market1501_LT_H3_S2")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Market1501_LT_H20S2", "no 'Market1501_LT_H20S2' in .* did you mean Market1501"),
        ("Market1501_LT_H20_S0", "whole numbers H >= 0 and S >= 1, got <20, 0>"),
        ("Market_LT_H20_S2", "there is no 'Market' in fast-reid's registry DATASET"),
        ("MSMT17_LT_H20_S2", "MSMT17 has no editions <H, S>, .*as Market1501"),
    ],
)
def test_names_of_no_edition(name, message):
    with pytest.raises((ValueError, KeyError), match=message):
        DATASET_REGISTRY.get(name)
