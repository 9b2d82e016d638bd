"""The strong recipe: against timm's Mixup and torchvision's AutoAugment, resumed, and its passengers."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from drawn_images import assert_same_weights, drawn, plain_batch, plain_steps
from PIL import Image
from timm.data import Mixup
from torchvision.transforms import AutoAugment, AutoAugmentPolicy

from benchmarks.classification import passenger as passenger_module
from benchmarks.classification.batches import Batches
from benchmarks.classification.passenger import Features, passenger_row
from benchmarks.classification.recipe import STATISTICS, build_model, epoch_draws
from benchmarks.classification.settings import Cell, Method, Protocol, Settings, load_settings
from benchmarks.classification.strong import augmented, mixing_weights
from benchmarks.classification.training import CellRun

PLAIN = Protocol(depth=8, width=4, epochs=3, milestones=(2,), warmup_epochs=1, batch_size=8, padding=2)
MIXUP = dataclasses.replace(PLAIN, mixup=1.0)
AUGMENT = dataclasses.replace(PLAIN, augment="autoaugment")
CE = Method()


def run(protocol, method=CE):
    cell = CellRun(protocol, method, drawn(), 0)
    assert cell.train()
    return cell


@pytest.mark.parametrize("loss", ["ce", "balanced_softmax"])
def test_mixup_is_timms(loss):
    """A run against a plain loop with timm's Mixup, whose weights are ours."""
    cell, images = run(MIXUP, Method(loss=loss)), drawn()
    mixup = Mixup(mixup_alpha=1.0, label_smoothing=0.0, num_classes=10)
    model = build_model(PLAIN, Method(), 10, 0)
    counts = np.bincount(images.train_labels, minlength=10)
    shift = torch.from_numpy(np.log(counts / counts.sum())).float() if loss == "balanced_softmax" else 0.0
    for epoch, step, draw in plain_steps(images, PLAIN, model):
        weights = mixing_weights(len(images.train) // 8, 1.0, 0, epoch).tolist()
        mixup._params_per_batch = lambda weight=weights[step]: (weight, False)
        x, target = mixup(*plain_batch(images, draw, 2))
        torch.nn.functional.cross_entropy(model(x) + shift, target).backward()
    assert_same_weights(cell, model)


def test_the_weights_of_mixup_are_beta():
    weights = mixing_weights(20_000, 0.2, 0, 0)
    expected = np.random.default_rng(7).beta(0.2, 0.2, 20_000)
    assert np.quantile(weights, [0.1, 0.3, 0.5, 0.9]) == pytest.approx(
        np.quantile(expected, [0.1, 0.3, 0.5, 0.9]), abs=0.03
    )
    assert not torch.equal(mixing_weights(5, 1.0, 0, 0), mixing_weights(5, 1.0, 0, 1))


def test_autoaugment_is_the_policy_for_cifar():
    """Bit for bit, but for the black square."""
    images = drawn(size=32, per_class=(1,) * 10).train
    state = torch.random.get_rng_state()
    ours = augmented(images, seed=3, epoch=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    policy = AutoAugment(AutoAugmentPolicy.CIFAR10, fill=[128] * 3)
    torch.manual_seed(int(np.random.SeedSequence((3, 1, 2)).generate_state(1)[0]))
    theirs = np.stack([np.asarray(policy(Image.fromarray(image))) for image in images])
    differs = (ours != theirs).any(3)
    # The square is 16 x 16 where the border does not cut it, and black.
    for image, cut in zip(ours, differs, strict=True):
        rows, cols = np.flatnonzero(cut.any(1)), np.flatnonzero(cut.any(0))
        assert 0 < rows[-1] - rows[0] + 1 <= 16 and 0 < cols[-1] - cols[0] + 1 <= 16
        assert (image[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1] == 0).all()
    assert (theirs != images).any() and not np.array_equal(augmented(images, 3, 2), ours)


def test_augmented_images_are_cropped_and_flipped_first():
    images = drawn()
    batches = Batches(AUGMENT, Method(), images, 10, 0, torch.device("cpu"))
    draws = epoch_draws(len(images.train), 8, 2, 0, 0)
    plain = torch.cat([plain_batch(images, draw, 2)[0] for draw in draws])
    mean, std = (torch.tensor(s)[:, None, None] for s in STATISTICS[10])
    pixels = ((plain * std + mean) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    expected = torch.from_numpy(augmented(pixels, 0, 0)).permute(0, 3, 1, 2) / 255
    got = [batches.batch(draw) for draw in batches.epoch(0)]
    torch.testing.assert_close(torch.cat([x for x, _ in got]), (expected - mean) / std)
    assert torch.equal(torch.cat([y for _, y in got]), torch.from_numpy(images.train_labels)[draws[..., 0].flatten()])


@pytest.mark.parametrize("protocol", [MIXUP, AUGMENT], ids=["mixup", "autoaugment"])
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_a_passenger_is_the_run_by_itself(tmp_path, protocol, graph, monkeypatch):
    """Of a run that is interrupted after each epoch; also with a stand-in for the CUDA graph."""
    method = Method(memory="feature", eta=15, norm="max", start=1)
    expected = run(protocol, method).result()
    file = tmp_path / "host.pt"
    while not (host := CellRun(protocol, Method(), drawn(), 0, log_folder=tmp_path)).train(file, deadline=-math.inf):
        pass
    captured = []

    def graphed(forward_backward, example, parameters, stateful):
        captured.append([one.clone() for one in example])

        def replay(*inputs):
            for place, new in zip(captured[0], inputs, strict=True):
                place.copy_(new)
            for parameter in parameters:
                parameter.grad = None
            return forward_backward(*captured[0])

        return replay

    monkeypatch.setattr(passenger_module, "graphed", graphed)
    host.graph = graph
    row = passenger_row(method, Features(host))
    assert {**row, "seconds": 0, "resumed": 0} == {**expected, "seconds": 0} and len(captured) == graph
    assert row["curve"] != run(PLAIN, method).curve


def test_rows_of_today_keep_their_settings_and_new_ones_name_theirs():
    settings = Settings({"a": PLAIN, "b": MIXUP}, {"ce": Method(), "drawn": Method(sampler="square-root")}, {})
    cells = (("a", "ce"), ("b", "ce"), ("a", "drawn"))
    a, b, c = (settings.of(Cell("cifar10_lt", 100, protocol, method, 0)) for protocol, method in cells)
    assert "mixup" not in a["protocol"] and "augment" not in a["protocol"] and "sampler" not in a["method"]
    assert b == {**a, "protocol": {**a["protocol"], "mixup": 1.0}}
    assert c == {**a, "method": {**a["method"], "sampler": "square-root"}}
    json.dumps(c)


@pytest.mark.parametrize(
    ("method", "protocol", "message"),
    [
        ("bbn", "paper_mixup", "bbn takes hard ones"),
        ("bbn", "paper_autoaugment", "bbn draws more"),
        ("ce_square_root", "paper_autoaugment", "square-root draws more"),
    ],
)
def test_what_does_not_go_together_is_said(method, protocol, message):
    with pytest.raises(ValueError, match=f"{method} under the protocol {protocol}.*{message}"):
        load_settings().cells(["cifar10_lt"], [100], protocol, [method], [0])


@pytest.mark.parametrize(("name", "value"), [("mixup", -1.0), ("mixup", math.nan), ("augment", "randaugment")])
def test_values_out_of_range_are_said(name, value):
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(PLAIN, **{name: value})
