"""BBN in the benchmark: its draws, its network, and a cell against a plain loop."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import timm
import torch
from drawn_images import drawn, plain_batch, plain_rate
from torch import nn

import mbj_plugin.timm  # noqa: F401  registers resnet32_cifar
from benchmarks.classification.bbn import reversed_draws, two_branches
from benchmarks.classification.recipe import build_model, epoch_draws
from benchmarks.classification.settings import Method, Protocol
from benchmarks.classification.training import CellRun
from benchmarks.rivals.bbn import reversed_probs

LABELS = np.repeat([0, 2, 1], [60, 12, 3])


@pytest.fixture(params=[8, 14])
def resnet(request):
    torch.manual_seed(0)
    return timm.create_model("resnet32_cifar", depth=request.param, width=4, num_classes=3)


def test_the_reversed_sampler_draws_in_proportion_to_n_max_over_n():
    draws = reversed_draws(LABELS, 400, 10, 2, seed=0, epoch=0)
    assert draws.shape == (400, 10, 4) and draws.dtype == torch.int64
    index = draws[..., 0].flatten().numpy()
    drawn = np.bincount(LABELS[index], minlength=3) / 4000
    assert drawn == pytest.approx(reversed_probs([60, 3, 12]), abs=0.02)
    # Inside a class every image is as likely as any other, and comes more than once.
    of_class = np.bincount(index, minlength=75)[LABELS == 1]
    assert len(of_class) == 3 and of_class == pytest.approx(of_class.mean(), rel=0.1)
    assert set(index[LABELS[index] == 2]) == set(range(60, 72))
    assert set(draws[..., 1].unique().tolist()) == set(draws[..., 2].unique().tolist()) == {0, 1, 2, 3, 4}
    assert set(draws[..., 3].unique().tolist()) == {0, 1}


def test_draws_depend_on_seed_and_epoch_alone():
    first = reversed_draws(LABELS, 3, 10, 2, seed=0, epoch=0)
    assert torch.equal(first, reversed_draws(LABELS, 3, 10, 2, seed=0, epoch=0))
    assert not torch.equal(first, reversed_draws(LABELS, 3, 10, 2, seed=0, epoch=1))
    assert not torch.equal(first, reversed_draws(LABELS, 3, 10, 2, seed=1, epoch=0))


def test_a_cell_is_a_plain_loop_over_two_batches():
    images, protocol = drawn(), Protocol(8, 4, 3, (2,), 1, batch_size=8, padding=2, weight_decay=5e-3)
    cell = CellRun(protocol, Method(loss="bbn"), images, 0)
    assert cell.train()
    model = build_model(protocol, Method(loss="bbn"), 10, 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-3)
    steps = len(images.train) // 8
    for epoch in range(3):
        alpha = 1 - (epoch / 3) ** 2
        draws = [
            epoch_draws(len(images.train), 8, 2, 0, epoch),
            reversed_draws(images.train_labels, steps, 8, 2, 0, epoch),
        ]
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = plain_rate(protocol, steps, epoch * steps + step)
            (x_c, y_c), (x_r, y_r) = (plain_batch(images, both[step], 2) for both in draws)
            logits = model.mixed(x_c, x_r, alpha)
            losses = [nn.functional.cross_entropy(logits, y) for y in (y_c, y_r)]
            optimizer.zero_grad()
            (alpha * losses[0] + (1 - alpha) * losses[1]).backward()
            optimizer.step()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(cell.model.state_dict()[key], value, rtol=1e-4, atol=1e-5, msg=key)
    # The row's error is of alpha 1/2, whatever the last epoch's was.
    x = plain_batch(dataclasses.replace(images, train=images.test), torch.tensor([[i, 2, 2, 0] for i in range(50)]), 2)[
        0
    ]
    model.eval()
    wrong = model.mixed(x, x, 0.5).argmax(1).numpy() != images.test_labels
    assert cell.result()["error"] == pytest.approx(100 * wrong.mean(), abs=1e-3)


def test_nothing_else_goes_with_it():
    with pytest.raises(ValueError, match="memory does not go with the loss bbn"):
        Method(loss="bbn", memory="feature")


def test_the_new_block_and_the_classifier_are_drawn_anew(resnet):
    whole = copy.deepcopy(resnet)
    model = two_branches(resnet)
    conventional, rebalancing = model.branches
    for name, value in whole.layer3[-1].state_dict().items():
        assert torch.equal(conventional.state_dict()[name], value)
    assert not torch.equal(conventional.conv1.weight, rebalancing.conv1.weight)
    scale = math.sqrt(2 / rebalancing.conv2.weight[0].numel())  # He's
    assert rebalancing.conv2.weight.std().item() == pytest.approx(scale, rel=0.15)
    assert model.fc.weight.std().item() == pytest.approx(math.sqrt(2 / model.fc.in_features), rel=0.2)
    assert all(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))
