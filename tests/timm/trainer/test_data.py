import numpy as np
import pytest
import torch
from torch.utils.data import Subset

from mbj_plugin import exponential_counts
from mbj_plugin.timm.trainer.data import Digits, LongTailSubset, pad_crop


def test_digits_splits_are_disjoint_and_complete():
    parts = [Digits(split) for split in ("train", "validation", "test")]
    assert sum(len(part) for part in parts) == 1797
    seen = [image.tobytes() for part in parts for image in part.images]
    assert len(set(seen)) == 1797
    for part in parts:
        assert np.bincount(part.targets).min() >= 0.95 * len(part) / 10
    with pytest.raises(ValueError, match="'dev'"):
        Digits("dev")


def test_digits_are_images():
    image, label = Digits("train")[3]
    assert (image.size, image.mode) == ((8, 8), "L")
    assert 0 <= label < 10
    assert Digits("train", "RGB")[0][0].mode == "RGB"


def test_long_tail_subset_and_its_manifest():
    whole = Digits("train")
    subset = LongTailSubset(whole, 20, seed=3)
    counts = np.bincount(subset.targets)
    assert counts.tolist() == exponential_counts(10, counts[0], 20).tolist()
    assert subset[5][1] == whole.targets[subset.indices[5]]
    manifest = subset.manifest()
    assert manifest["class_counts"] == counts.tolist()
    assert manifest["indices"] == subset.indices.tolist()
    assert manifest["sha256"] == LongTailSubset(whole, 20, seed=3).manifest()["sha256"]
    assert manifest["sha256"] != LongTailSubset(whole, 20, seed=4).manifest()["sha256"]
    subset.transform = len
    assert whole.transform is len


def test_pad_crop_equals_with_and_without_prefetching():
    image = Digits("train")[0][0]
    torch.manual_seed(1)
    prefetched = pad_crop(8, 1, 0.5, [0.3], [0.4], prefetch=True)(image)
    torch.manual_seed(1)
    normalised = pad_crop(8, 1, 0.5, [0.3], [0.4], prefetch=False)(image)
    assert prefetched.dtype == torch.uint8
    torch.testing.assert_close((prefetched.float() / 255 - 0.3) / 0.4, normalised)


def test_subset_of_a_subset_is_counted():
    half = Subset(Digits("train"), range(0, 1000, 2))
    assert len(LongTailSubset(half, 5)) > 100
