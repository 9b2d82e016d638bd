"""Loaders and Mixup are what the flags say."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_build import CPU, arguments
from timm.data import Mixup
from timm.utils import random_seed

from mbj_plugin.tools.trainer import build
from mbj_plugin.tools.trainer.data import Digits, LongTailSubset

AUGMENTATION = {
    **{"no_aug": False, "train_crop_mode": "rrc", "scale": [0.2, 0.9], "ratio": [0.8, 1.2], "hflip": 0.3, "vflip": 0.4},
    **{"color_jitter": 0.6, "color_jitter_prob": 0.7, "grayscale_prob": 0.15, "gaussian_blur_prob": 0.25},
    **{"worker_seeding": "part"},
}


class OnlyLabels(list):
    """A data set of which only the labels are asked for."""

    targets = (0, 0, 1, 2)
    transform = "timm's"


@pytest.fixture
def loaders(monkeypatch):
    """loaders(...): what make_loaders returns, and what it asked timm for."""
    asked, images = [], OnlyLabels(OnlyLabels.targets)
    monkeypatch.setattr(build, "create_loader", lambda dataset, **kwargs: asked.append((dataset, kwargs)) or [1])
    monkeypatch.setattr(build, "pad_crop", lambda *arguments: arguments)

    def make(**values):
        asked.clear()
        images.transform = OnlyLabels.transform
        model = SimpleNamespace(pretrained_cfg={"mean": (0.1,), "std": (0.2,), "crop_pct": 0.8, "interpolation": "box"})
        args = arguments(**{"mean": None, "std": None, "batch_size": 6, "train_interpolation": "", **values})
        return build.make_loaders(args, model, (images, "evaluation images"), CPU), asked, images

    return make


def test_loaders_are_what_the_flags_say(loaders):
    more = {"reprob": 0.35, "remode": "const", "recount": 2, "aa": "rand-m3", "pin_mem": True, "workers": 3}
    data, asked, images = loaders(**AUGMENTATION, **more, distributed=True, crop_pad=None)
    shared = {
        **{"input_size": (1, 8, 8), "mean": (0.1,), "std": (0.2,), "num_workers": 3, "distributed": True},
        **{"pin_memory": True, "device": CPU, "use_prefetcher": True, "persistent_workers": False},
    }
    (train_set, train), (evaluation_set, evaluation) = asked
    assert train_set is images and evaluation_set == "evaluation images" and images.transform == "timm's"
    assert train == shared | AUGMENTATION | {
        **{"batch_size": 6, "is_training": True, "re_prob": 0.35, "re_mode": "const", "re_count": 2},
        **{"auto_augment": "rand-m3", "interpolation": "box", "collate_fn": None},
    }
    assert evaluation == shared | {"batch_size": 6, "is_training": False, "interpolation": "box", "crop_pct": 0.8}
    assert data.counts.tolist() == [2, 1, 1] and data.mixup_fn is None
    assert (data.train, data.evaluation) == ([1], [1])


@pytest.mark.parametrize(
    ("crop_pad", "jitter", "given"), [(None, 0.0, 0.0), (None, 0.4, 0.4), (1, 0.0, None), (1, 0.4, 0.4)]
)
def test_beside_pad_crop_no_jitter_is_none(loaders, crop_pad, jitter, given):
    _, asked, images = loaders(crop_pad=crop_pad, color_jitter=jitter)
    assert asked[0][1]["color_jitter"] == given and (given is None) == (asked[0][1]["color_jitter"] is None)
    assert images.transform == ("timm's" if crop_pad is None else ("timm's", (8, 8), 1, False))


def test_the_policy_for_cifar_is_not_timms(loaders):
    _, asked, images = loaders(crop_pad=1, aa="cifar10")
    assert asked[0][1]["auto_augment"] is None and images.transform == ("timm's", (8, 8), 1, True)


def test_batches_and_interpolation_of_their_own(loaders):
    _, asked, _ = loaders(validation_batch_size=9, train_interpolation="lanczos")
    assert (asked[0][1]["batch_size"], asked[1][1]["batch_size"]) == (6, 9)
    assert (asked[0][1]["interpolation"], asked[1][1]["interpolation"]) == ("lanczos", "box")
    _, asked, _ = loaders(train_interpolation="lanczos", no_aug=True)
    assert asked[0][1]["interpolation"] == "box"


@pytest.mark.parametrize(("name", "power"), [("class-balanced", 0), ("square-root", 0.5)])
def test_each_of_two_ranks_draws_its_half_of_an_epoch_by_class(name, power, monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 2)
    train_set = LongTailSubset(Digits("train"), 20)
    model = SimpleNamespace(pretrained_cfg={"mean": (0.1,), "std": (0.2,), "crop_pct": 0.8, "interpolation": "box"})
    args = arguments("--sampler", name, "-j", "0", "-b", "8", "--mean", "0.5", distributed=True, num_classes=10)
    draws = []
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda group=None, rank=rank: rank)
        random_seed(42, rank)  # as a run does
        data = build.make_loaders(args, model, [train_set, Digits("validation")], CPU)
        sampler = data.train.batch_sampler.sampler
        assert len(sampler) == -(-len(train_set) // 2) and len(data.train) == len(sampler) // 8
        draws.append([list(sampler) for _ in range(20)])
    assert draws[0] != draws[1] and draws[0][0] != draws[0][1] and {len(each) for each in draws[0]} == {len(sampler)}
    counts = data.counts
    assert counts.tolist() == np.bincount(train_set.targets).tolist() and counts[0] > 20 * counts[-1]
    shares = np.bincount(train_set.targets[np.concatenate(draws[0])]) / (20 * len(sampler))
    assert shares == pytest.approx(counts**power / (counts**power).sum(), abs=0.03)


MIXUP = {
    **{"mixup": 0.2, "cutmix": 0.3, "cutmix_minmax": [0.1, 0.9], "mixup_prob": 0.4, "mixup_switch_prob": 0.6},
    **{"mixup_mode": "elem", "smoothing": 0.05},
}


def test_mixup_is_what_the_flags_say(loaders):
    assert build._mixup_settings(arguments(**MIXUP)) == {
        **{"mixup_alpha": 0.2, "cutmix_alpha": 0.3, "cutmix_minmax": [0.1, 0.9], "prob": 0.4, "switch_prob": 0.6},
        **{"mode": "elem", "label_smoothing": 0.05, "num_classes": 3},
    }
    assert build._mixup_settings(arguments()) == {}
    for one in ({"mixup": 0.2}, {"cutmix": 0.3}, {"cutmix_minmax": [0.1, 0.9]}):
        assert build._mixup_settings(arguments(**one))
    data, asked, _ = loaders(**MIXUP)
    collate = asked[0][1]["collate_fn"]
    assert isinstance(collate, build.FastCollateMixup) and data.mixup_fn is None
    data, asked, _ = loaders(**MIXUP, prefetcher=False)
    assert asked[0][1]["collate_fn"] is None and type(data.mixup_fn) is Mixup
    for mix in (collate, data.mixup_fn):
        assert (mix.cutmix_minmax, mix.mix_prob, mix.switch_prob) == ([0.1, 0.9], 0.4, 0.6)
        assert (mix.mode, mix.label_smoothing, mix.num_classes, mix.mixup_alpha) == ("elem", 0.05, 3, 0.2)
