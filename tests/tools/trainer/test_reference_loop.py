"""train_timm against a loop of plain PyTorch: the same weights after two epochs, for every flag of the loop."""

import csv
import functools
import math

import plain_loop
import pytest
import torch
from plain_loop import BATCH, DECAY, EPOCHS, LR, MEAN, MOMENTUM, STD, Recipe

from mbj_plugin.tools.trainer import train as trainer
from mbj_plugin.tools.trainer.args import parse_args

#: 42 training images: five whole batches of 8 an epoch, so that windows of 2 leave a window of 1.
FLAGS = [
    *("--model", "resnet32_cifar", "--model-kwargs", "depth=8", "width=4", "--input-size", "3", "16", "16"),
    *("--mean", *[str(MEAN)] * 3, "--std", *[str(STD)] * 3, "--no-aug", "--smoothing", "0", "-b", str(BATCH)),
    *("-j", "0", "--epochs", str(EPOCHS), "--opt", "momentum", "--momentum", str(MOMENTUM)),
    *("--weight-decay", str(DECAY), "--lr", str(LR), "--sched", "none", "--no-progress"),
]


def run(tmp_path, folder, *flags):
    """results.json, the last checkpoint and the last line of summary.csv of a run."""
    argv = [str(folder), *FLAGS, *flags, "--output", str(tmp_path), "--experiment", "run"]
    result = trainer.train(parse_args(argv))
    with open(tmp_path / "run/summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == EPOCHS
    return result, torch.load(tmp_path / "run/last.pth.tar", weights_only=False), rows[-1]


def assert_same_run(found, expected):
    result, checkpoint, row = found
    for key in ("weights", "averaged"):
        saved = checkpoint.get("state_dict" if key == "weights" else "state_dict_ema")
        assert (saved is None) == (expected[key] is None), key
        for name, value in (expected[key] or {}).items():
            torch.testing.assert_close(saved[name], value, rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    for column in ("train_loss", "eval_loss"):
        assert float(row[column]) == pytest.approx(expected[column], rel=1e-4), column
    wrong = [round(error * 6 / 100) for error in result["per_class_error"]]  # of six images each
    assert wrong == expected["wrong"]


def clip_norm(bound):
    def clip(parameters):
        norm = math.sqrt(sum(float((p.grad.double() ** 2).sum()) for p in parameters))
        assert norm > bound, "the bound is so wide that clipping would not show"
        for p in parameters:
            p.grad *= bound / norm

    return clip


def clip_value(bound):
    def clip(parameters):
        assert any((p.grad.abs() > bound).any() for p in parameters)
        for p in parameters:
            p.grad.clamp_(-bound, bound)

    return clip


def clip_adaptively(factor):
    """A unit's gradient is at most a share of its weight (Brock et al., 2021, Eq. 3); the classifier is left alone."""

    def clip(parameters):
        for p in parameters[:-2]:
            rows = p.shape[0] if p.ndim > 1 else 1  # timm takes a vector as one unit
            weight, gradient = p.detach().reshape(rows, -1), p.grad.reshape(rows, -1)
            bound = factor * weight.norm(dim=1).clamp(min=1e-3)
            gradient *= (bound / gradient.norm(dim=1).clamp(min=1e-6)).clamp(max=1)[:, None]

    return clip


def ema_with_warmup(decay):
    """timm's: the first update copies, then the decay rises as 1 - n^(-2/3)."""
    return lambda update: 0.0 if update == 1 else min(decay, 1 - update ** (-2 / 3))


def cosine(updates, warmup, start):
    def rate(update, epoch):
        if update < warmup:
            return start + update * (LR - start) / warmup
        return LR / 2 * (1 + math.cos(math.pi * update / updates))

    return rate


CASES = {
    "plain": ([], Recipe()),
    "smoothing": (["--smoothing", "0.2"], Recipe(smoothing=0.2)),
    "accumulation": (["--grad-accum-steps", "2"], Recipe(accumulate=2)),
    "clip-norm": (["--clip-grad", "0.5"], Recipe(clip=clip_norm(0.5))),
    "clip-value": (["--clip-grad", "0.02", "--clip-mode", "value"], Recipe(clip=clip_value(0.02))),
    "clip-agc": (["--clip-grad", "0.02", "--clip-mode", "agc"], Recipe(clip=clip_adaptively(0.02))),
    "clip-accumulated": (
        ["--clip-grad", "0.5", "--grad-accum-steps", "2"],
        Recipe(clip=clip_norm(0.5), accumulate=2),
    ),
    "ema": (
        ["--model-ema", "--model-ema-decay", "0.7"],
        Recipe(ema_decay=lambda update: 0.0 if update == 1 else 0.7),
    ),
    "ema-warmup": (
        ["--model-ema", "--model-ema-decay", "0.7", "--model-ema-warmup"],
        Recipe(ema_decay=ema_with_warmup(0.7)),
    ),
    "mixup": (["--mixup", "0.5", "--smoothing", "0.1"], Recipe(mixup=0.5, smoothing=0.1)),
    "mixup-off": (
        ["--mixup", "0.5", "--smoothing", "0.1", "--mixup-off-epoch", "1"],
        Recipe(mixup=0.5, smoothing=0.1, mixup_epochs=1),
    ),
    "mixup-off-no-prefetcher": (
        ["--mixup", "0.5", "--mixup-off-epoch", "1", "--no-prefetcher"],
        Recipe(mixup=0.5, mixup_epochs=1, rounds=False),
    ),
    "amp": (["--amp", "--amp-dtype", "bfloat16"], Recipe(bf16=True)),
    "channels-last": (["--channels-last"], Recipe(channels_last=True)),
    "multistep": (
        ["--sched", "multistep", "--decay-milestones", "2", "--decay-rate", "0.1", "--warmup-epochs", "0"],
        Recipe(rate=lambda update, epoch: LR * 0.1**epoch),  # timm's milestone 2 is the second epoch
    ),
    "cosine-on-updates": (
        ["--sched", "cosine", "--sched-on-updates", "--warmup-epochs", "1", "--warmup-lr", "0.001"],
        Recipe(rate=cosine(10, 5, 0.001)),
    ),
}


@functools.cache
def reference(folder, case):
    return plain_loop.train(folder, CASES[case][1])


@pytest.mark.parametrize("case", CASES)
def test_the_run_is_the_plain_loop(tmp_path, image_folder, case):
    assert_same_run(run(tmp_path, image_folder, *CASES[case][0]), reference(image_folder, case))


def test_with_eta_0_it_is_the_plain_loop_too(tmp_path, image_folder):
    flags = ["--grad-accum-steps", "2", "--clip-grad", "0.5", "--model-ema", "--model-ema-decay", "0.7"]
    found = run(tmp_path, image_folder, *flags, "--mbj", "--mbj-eta", "0", "--mbj-memory", "both", "--mbj-start", "0")
    recipe = Recipe(accumulate=2, clip=clip_norm(0.5), ema_decay=lambda update: 0.0 if update == 1 else 0.7)
    assert_same_run(found, plain_loop.train(image_folder, recipe))


def test_recipes_differ_by_more_than_the_tolerance(image_folder):
    """Else the comparison above would say nothing: each recipe moves some weight by a hundred times the tolerance."""
    plain = reference(image_folder, "plain")["weights"]
    for case, (_, recipe) in CASES.items():
        if case in ("plain", "channels-last"):  # the same numbers in another order
            continue
        weights = reference(image_folder, case)["averaged" if recipe.ema_decay is not None else "weights"]
        distance = max((weights[name].float() - value.float()).abs().max() for name, value in plain.items())
        assert distance > 1e-4, case
