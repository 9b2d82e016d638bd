import json

import numpy as np
import pytest
from timm.data import AugMixDataset, create_dataset
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset
from torchvision.datasets import ImageFolder

from mbj_plugin.timm.counts import counts_from_file, dataset_labels, training_counts


class Labelled(Dataset):
    """Fails the test if an image is ever asked for."""

    transform = None

    def __init__(self, targets):
        self.targets = targets

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        raise AssertionError("an image was decoded")


class Stream(IterableDataset):
    def __iter__(self):
        raise AssertionError("the stream was read")


@pytest.mark.parametrize("kind", ["timm", "torchvision"])
def test_folders(image_folder, kind, monkeypatch):
    monkeypatch.setattr("PIL.Image.open", lambda *_: pytest.fail("an image was decoded"))
    dataset = (
        create_dataset("", root=image_folder, split="train") if kind == "timm" else ImageFolder(image_folder / "train")
    )
    assert np.bincount(dataset_labels(dataset)).tolist() == [24, 12, 6]


def test_wrappers():
    dataset = Labelled([0, 1, 2, 1])
    assert dataset_labels(Subset(dataset, [3, 0])).tolist() == [1, 0]
    assert dataset_labels(ConcatDataset([dataset, Subset(dataset, [2])])).tolist() == [0, 1, 2, 1, 2]
    assert dataset_labels(AugMixDataset(dataset)).tolist() == [0, 1, 2, 1]


def test_target_transform():
    dataset = Labelled([0, 1])
    dataset.target_transform = lambda y: y + 5
    assert dataset_labels(dataset).tolist() == [5, 6]


@pytest.mark.parametrize("dataset", [Stream(), Subset(Stream(), [0]), Dataset()])
def test_sets_that_cannot_be_counted(dataset):
    with pytest.raises(ValueError, match="cannot count the classes of .*--mbj-class-counts"):
        dataset_labels(dataset)


def test_counts_from_a_file_stand_in(tmp_path):
    (tmp_path / "list.json").write_text("[5, 3]")
    (tmp_path / "timm.json").write_text(json.dumps({"pos_counts": [5, 3], "num_samples": 8}))
    for name in ("list.json", "timm.json"):
        assert training_counts(Stream(), 2, tmp_path / name).tolist() == [5, 3]
    with pytest.raises(ValueError, match="hold 2 classes, the model has 4"):
        training_counts(Stream(), 4, tmp_path / "list.json")


@pytest.mark.parametrize(("content", "message"), [("{", "no JSON"), ('{"a": 1}', "JSON list"), ("[1, -2]", ">= 0")])
def test_bad_files(tmp_path, content, message):
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        counts_from_file(tmp_path / "c.json")
    with pytest.raises(ValueError, match="cannot read.*missing.json"):
        counts_from_file(tmp_path / "missing.json")


@pytest.mark.parametrize(
    ("targets", "num_classes", "message"),
    [
        ([0, 0], 1, "1 class"),
        ([0, 0, 2], 3, "1 of 3 classes have no training images.*class 1"),
        ([0, 1, 7], 3, "label 7 is out of range.*0 to 2"),
    ],
)
def test_bad_labels(targets, num_classes, message):
    with pytest.raises(ValueError, match=message):
        training_counts(Labelled(targets), num_classes)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([1, 2, 3], r"contradict the images, \[1, 2, 3\] there and \[3, .*leave out --mbj-class-counts"),
        ([3, 2], r"contradict the images, \[3, 2\] there.*leave out"),
        ([3, 2, 1, 4], r"\[3, 2, 1, 4\] there and \[3, 2, 1\] in training"),
        ([3, 2, 1.5], "whole numbers"),
        ([3, 2, True], "whole numbers"),
    ],
)
def test_counts_that_contradict_a_set_that_can_be_counted(tmp_path, counts, message):
    (tmp_path / "c.json").write_text(json.dumps(counts))
    dataset = Labelled([0, 0, 0, 1, 1, 2])
    with pytest.raises(ValueError, match=message):
        training_counts(dataset, len(counts), tmp_path / "c.json")
    (tmp_path / "c.json").write_text("[3, 2, 1.0]")
    assert training_counts(dataset, 3, tmp_path / "c.json").tolist() == [3, 2, 1]
