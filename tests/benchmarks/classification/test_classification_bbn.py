"""BBN and draws by class: the network against its formulas, and a cell against a plain loop."""

import copy
import math

import numpy as np
import pytest
import timm
import torch
from drawn_images import assert_same_weights, drawn, plain_batch, plain_steps
from torch import nn

from benchmarks.classification.recipe import build_model, class_draws
from benchmarks.classification.settings import Method, Protocol
from benchmarks.classification.training import CellRun
from benchmarks.rivals.bbn import BilateralBranch, BilateralLoss, bbn_loss, cumulative_alpha, reversed_probs

LABELS = np.repeat([0, 2, 1], [60, 12, 3])
PROTOCOL = Protocol(8, 4, 3, (2,), 1, batch_size=8, padding=2, weight_decay=5e-3)


@pytest.fixture(params=[8, 14])
def parts(request):
    """A ResNet as it was, and the network that it became."""
    torch.manual_seed(0)
    model = timm.create_model("resnet32_cifar", depth=request.param, width=4, num_classes=3)
    return copy.deepcopy(model), BilateralBranch(model)


@pytest.fixture
def images():
    return torch.randn(2, 5, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_a_class_is_drawn_by_its_probability_and_then_any_image_of_it():
    weights = [60 / 60, 60 / 3, 60 / 12]
    probs = reversed_probs([60, 3, 12])
    assert probs == pytest.approx([w / sum(weights) for w in weights])
    draws = class_draws(LABELS, probs, 400, 10, 2, (0, 0, 1))
    assert draws.shape == (400, 10, 4) and draws.dtype == torch.int64
    index = draws[..., 0].flatten().numpy()
    assert np.bincount(LABELS[index], minlength=3) / 4000 == pytest.approx(probs, abs=0.02)
    # Inside a class every image is as likely as any other, and comes more than once.
    of_class = np.bincount(index, minlength=75)[LABELS == 1]
    assert len(of_class) == 3 and of_class == pytest.approx(of_class.mean(), rel=0.1)
    assert set(index[LABELS[index] == 2]) == set(range(60, 72))
    assert set(draws[..., 1].unique().tolist()) == set(draws[..., 2].unique().tolist()) == {0, 1, 2, 3, 4}
    assert set(draws[..., 3].unique().tolist()) == {0, 1}
    assert torch.equal(draws, class_draws(LABELS, probs, 400, 10, 2, (0, 0, 1)))
    assert not torch.equal(draws, class_draws(LABELS, probs, 400, 10, 2, (0, 1, 1)))
    with pytest.raises(ValueError, match="class 1 has no image"):
        reversed_probs([3, 0, 1])


@pytest.mark.parametrize(("sampler", "power"), [("class-balanced", 0), ("square-root", 0.5), (None, 1)])
def test_a_sampler_draws_classes_by_a_power_of_their_images(sampler, power):
    cell = CellRun(PROTOCOL, Method(sampler=sampler), drawn(), 0)
    shares = (cell.counts / cell.counts.sum()) ** power
    rows = torch.cat([draw[:, 0] for epoch in range(60) for draw in cell.batches.epoch(epoch)])
    seen = np.bincount(cell.train_labels[rows], minlength=10) / len(rows)
    assert seen == pytest.approx(shares / shares.sum(), abs=0.03)
    assert cell.counts.tolist() == np.bincount(drawn().train_labels).tolist()  # what the losses count stays the set's


def test_a_cell_is_a_plain_loop_over_two_batches():
    images = drawn()
    cell = CellRun(PROTOCOL, Method(loss="bbn"), images, 0)
    assert cell.train()
    model = build_model(PROTOCOL, Method(loss="bbn"), 10, 0)
    steps, reverse = len(images.train) // 8, reversed_probs(np.bincount(images.train_labels))
    for epoch, step, draw in plain_steps(images, PROTOCOL, model):
        alpha = 1 - (epoch / 3) ** 2
        other = class_draws(images.train_labels, reverse, steps, 8, 2, (0, epoch, 1))[step]
        (x_c, y_c), (x_r, y_r) = (plain_batch(images, each, 2) for each in (draw, other))
        logits = model.mixed(x_c, x_r, alpha)
        losses = [nn.functional.cross_entropy(logits, y) for y in (y_c, y_r)]
        (alpha * losses[0] + (1 - alpha) * losses[1]).backward()
    assert_same_weights(cell, model)


@pytest.mark.parametrize("alpha", [1.0, 0.3, torch.tensor(0.7)])
def test_logits_mix_the_features_of_the_two_branches(parts, images, alpha):
    """The second branch is a ResNet of its own, with the new last block and the first one's other layers."""
    first, model = parts
    second = copy.deepcopy(first)
    second.layer3[-1] = copy.deepcopy(model.branches[1])
    for net in (first, second, model):
        net.eval()
    f_c, f_r = (
        net.forward_head(net.forward_features(x), pre_logits=True)
        for net, x in zip((first, second), images, strict=True)
    )
    both, a = torch.cat([float(alpha) * f_c, (1 - float(alpha)) * f_r], dim=1), model.fc
    torch.testing.assert_close(model.mixed(*images, alpha), 2 * both @ a.weight.T + a.bias, rtol=1e-4, atol=1e-4)
    # The test is the mix with alpha one half, whatever the epoch's is; in training the second half is of the second.
    model.alpha.fill_(0.1)
    torch.testing.assert_close(model(images[0]), model.mixed(images[0], images[0], 0.5))
    BilateralLoss(model.train()).begin_epoch(1, 2)
    torch.testing.assert_close(model(images.flatten(0, 1)), model.mixed(*images, 0.75))
    # Each batch is normalised alone.
    torch.testing.assert_close(model.mixed(images[0], 100 * images[1], 1.0), model.mixed(*images, 1.0))


def test_only_the_last_block_and_the_classifier_are_new(parts):
    whole, model = parts
    conventional, rebalancing = model.branches
    for name, value in whole.layer3[-1].state_dict().items():
        assert torch.equal(conventional.state_dict()[name], value)
    assert not torch.equal(conventional.conv1.weight, rebalancing.conv1.weight)
    scale = math.sqrt(2 / rebalancing.conv2.weight[0].numel())  # He's
    assert rebalancing.conv2.weight.std().item() == pytest.approx(scale, rel=0.15)
    assert model.fc.weight.std().item() == pytest.approx(math.sqrt(2 / model.fc.in_features), rel=0.2)
    block = sum(p.numel() for p in whole.layer3[-1].parameters())
    counts = [sum(p.numel() for p in net.parameters()) for net in (whole, model)]
    assert counts[1] == counts[0] + block + whole.num_features * 3
    assert "alpha" not in model.state_dict()  # it is the epoch's


def test_the_loss_weighs_two_cross_entropies(parts):
    assert [cumulative_alpha(epoch, 4) for epoch in range(4)] == [1, 1 - 1 / 16, 1 - 4 / 16, 1 - 9 / 16]
    logits, labels, others = torch.tensor([[1.0, 0.0, 2.0], [0.5, 1.0, 0.0], [3.0, 1.0, 0.0]]), [0, 1, 0], [2, 2, 1]
    expected = 0.0
    for row, y_c, y_r in zip(logits.tolist(), labels, others, strict=True):
        total = math.log(sum(math.exp(z) for z in row))
        expected += (0.75 * (total - row[y_c]) + 0.25 * (total - row[y_r])) / 3
    loss = BilateralLoss(parts[1])
    loss.begin_epoch(1, 2)
    assert loss(logits, torch.tensor(labels + others)).item() == pytest.approx(expected)


def test_both_branches_learn_where_alpha_lets_them(parts, images):
    model, labels = parts[1], torch.arange(5) % 3
    for alpha, silent in ((1.0, 1), (0.5, None)):
        model.zero_grad()
        bbn_loss(model.mixed(*images, alpha), labels, labels, alpha).backward()
        for place, branch in enumerate(model.branches):
            moved = any(p.grad is not None and p.grad.abs().max() > 0 for p in branch.parameters())
            assert moved == (place != silent)
        assert model.model.conv1.weight.grad.abs().max() > 0


def test_nothing_else_goes_with_it():
    with pytest.raises(ValueError, match="memory does not go with the loss bbn"):
        Method(loss="bbn", memory="feature")
