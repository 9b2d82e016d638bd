"""BBN against its formulas, image by image."""

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
from benchmarks.classification.bbn import BilateralBranch, bbn_loss, cumulative_alpha, reversed_draws, reversed_probs
from benchmarks.classification.recipe import build_model, epoch_draws
from benchmarks.classification.settings import Method, Protocol
from benchmarks.classification.training import CellRun

LABELS = np.repeat([0, 2, 1], [60, 12, 3])


@pytest.fixture(params=[8, 14])
def resnet(request):
    torch.manual_seed(0)
    return timm.create_model("resnet32_cifar", depth=request.param, width=4, num_classes=3)


@pytest.fixture
def images():
    return torch.randn(2, 5, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_alpha_is_the_papers_parabola():
    assert [cumulative_alpha(epoch, 4) for epoch in range(4)] == [1, 1 - 1 / 16, 1 - 4 / 16, 1 - 9 / 16]


def test_the_reversed_sampler_draws_in_proportion_to_n_max_over_n():
    weights = [60 / 60, 60 / 3, 60 / 12]
    assert reversed_probs([60, 3, 12]) == pytest.approx([w / sum(weights) for w in weights])
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


def test_a_class_without_an_image_is_named():
    with pytest.raises(ValueError, match="class 1 has no image"):
        reversed_probs([3, 0, 1])


@pytest.mark.parametrize("alpha", [1.0, 0.3, torch.tensor(0.7)])
def test_logits_mix_the_features_of_the_two_branches(resnet, images, alpha):
    """The second branch is a ResNet of its own, with its own last block and the first one's other layers."""
    first = copy.deepcopy(resnet).eval()
    model = BilateralBranch(resnet).eval()
    second = copy.deepcopy(first)
    second.layer3[-1].load_state_dict(model.rebalancing.state_dict())
    f_c, f_r = (
        net.forward_head(net.forward_features(x), pre_logits=True)
        for net, x in zip((first, second), images, strict=True)
    )
    logits = model.mixed(*images, alpha)
    dim, a = f_c.shape[1], float(alpha)
    for i in range(5):
        for c in range(3):
            weight = model.fc.weight[c]
            slow = sum(2 * a * weight[d] * f_c[i, d] + 2 * (1 - a) * weight[dim + d] * f_r[i, d] for d in range(dim))
            assert logits[i, c].item() == pytest.approx((slow + model.fc.bias[c]).item(), abs=1e-4)


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


def test_the_test_is_the_mix_with_alpha_one_half(resnet, images):
    model = BilateralBranch(resnet).eval()
    torch.testing.assert_close(model(images[0]), model.mixed(images[0], images[0], 0.5))


def test_only_the_last_block_and_the_classifier_are_new(resnet, images):
    whole, block = copy.deepcopy(resnet), sum(p.numel() for p in resnet.layer3[-1].parameters())
    model = BilateralBranch(resnet)
    counts = [sum(p.numel() for p in net.parameters()) for net in (whole, model)]
    assert counts[1] == counts[0] + block + whole.num_features * 3
    assert not torch.equal(model.conventional.conv1.weight, model.rebalancing.conv1.weight)
    scale = math.sqrt(2 / model.rebalancing.conv2.weight[0].numel())  # He's
    assert model.rebalancing.conv2.weight.std().item() == pytest.approx(scale, rel=0.15)
    assert all(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_each_batch_is_normalised_alone(resnet, images):
    model = BilateralBranch(resnet)
    before = model.mixed(images[0], images[1], 1.0)
    torch.testing.assert_close(model.mixed(images[0], 100 * images[1], 1.0), before)


def test_the_loss_weighs_two_cross_entropies():
    logits, labels, others = torch.tensor([[1.0, 0.0, 2.0], [0.5, 1.0, 0.0]]), [0, 1], [2, 2]
    expected = 0.0
    for row, y_c, y_r in zip(logits.tolist(), labels, others, strict=True):
        total = math.log(sum(math.exp(z) for z in row))
        expected += (0.3 * (total - row[y_c]) + 0.7 * (total - row[y_r])) / 2
    assert bbn_loss(logits, torch.tensor(labels), torch.tensor(others), 0.3).item() == pytest.approx(expected)


def test_both_branches_learn_where_alpha_lets_them(resnet, images):
    model = BilateralBranch(resnet)
    labels = torch.arange(5) % 3
    for alpha, silent in ((1.0, "rebalancing"), (0.5, None)):
        model.zero_grad()
        bbn_loss(model.mixed(*images, alpha), labels, labels, alpha).backward()
        for name in ("shared", "conventional", "rebalancing"):
            moved = any(p.grad is not None and p.grad.abs().max() > 0 for p in getattr(model, name).parameters())
            assert moved == (name != silent)
