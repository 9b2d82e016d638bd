"""Each loss against its paper's formula, written as a plain loop in float64."""

import math

import pytest
import torch
from torch import nn

from mbj_plugin.batch_losses import LOSSES, BalancedSoftmaxLoss, FocalLoss, create_loss

COUNTS = [5000, 600, 50, 7]


def batch(rows=9, classes=4, scale=3.0):
    g = torch.Generator().manual_seed(0)
    return scale * torch.randn(rows, classes, generator=g), torch.randint(0, classes, (rows,), generator=g)


def softmax(row):
    total = sum(math.exp(z) for z in row)
    return [math.exp(z) / total for z in row]


def mean(terms):
    return sum(terms) / len(terms)


def rows(logits, target):
    return list(zip(logits.double().tolist(), target.tolist(), strict=True))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal(gamma):
    logits, target = batch()
    terms = [-((1 - softmax(z)[y]) ** gamma) * math.log(softmax(z)[y]) for z, y in rows(logits, target)]
    assert FocalLoss(gamma)(logits, target).item() == pytest.approx(mean(terms), rel=1e-5)


def test_focal_of_a_certain_image_has_a_finite_gradient():
    logits = torch.tensor([[60.0, 0.0]], requires_grad=True)
    FocalLoss(0.5)(logits, torch.tensor([0])).backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_balanced_softmax(tau):
    logits, target = batch()
    terms = []
    for z, y in rows(logits, target):
        weighted = [n**tau * math.exp(v) for n, v in zip(COUNTS, z, strict=True)]
        terms.append(-math.log(weighted[y] / sum(weighted)))
    assert BalancedSoftmaxLoss(COUNTS, tau)(logits, target).item() == pytest.approx(mean(terms), rel=1e-5)


def test_balanced_softmax_of_an_empty_class():
    logits, target = batch(classes=3)
    logits.requires_grad_()
    loss = BalancedSoftmaxLoss([10, 5, 0])(logits, target % 2)
    torch.testing.assert_close(loss, BalancedSoftmaxLoss([10, 5])(logits[:, :2], target % 2))
    loss.backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_registry(name):
    logits, target = batch(scale=0.3)
    logits.requires_grad_()
    loss = create_loss(name, COUNTS)
    assert isinstance(loss, nn.Module)
    value = loss(logits, target)
    value.backward()
    assert value.ndim == 0 and torch.isfinite(value) and torch.isfinite(logits.grad).all()
    half = loss(logits.detach().bfloat16(), target)
    torch.testing.assert_close(half.float(), value, rtol=0.05, atol=0.05)


class OwnLoss(nn.Module):
    """Of a user: the counts under a name of its own, and a late phase."""

    def __init__(self, cls_num_list, start=0, scale=2.0):
        super().__init__()
        self.made_with = (cls_num_list, start, scale)


class PlainLoss(nn.Module):
    def __init__(self, scale=2.0):
        super().__init__()
        self.made_with = scale


def test_a_loss_of_ones_own():
    assert create_loss("test_batch_losses:OwnLoss", COUNTS, start=3).made_with == (COUNTS, 3, 2.0)
    assert create_loss("test_batch_losses:PlainLoss", COUNTS, start=3).made_with == 2.0
    assert create_loss("benchmarks.rivals.ldam:LDAMLoss", COUNTS, start=3).start == 3
    for name in ("test_batch_losses:Missing", "no_such_module:Loss", ":"):
        with pytest.raises(ValueError, match=name):
            create_loss(name, COUNTS)


@pytest.mark.parametrize("name", LOSSES)
def test_soft_targets(name):
    logits, target = batch()
    loss, soft = create_loss(name, COUNTS), nn.functional.one_hot(target, 4).float()
    if name == "focal":
        with pytest.raises(ValueError, match="Mixup"):
            loss(logits, soft)
        return
    torch.testing.assert_close(loss(logits, soft), loss(logits, target))
    mixed = 0.3 * loss(logits, target) + 0.7 * loss(logits, target.flip(0))
    torch.testing.assert_close(loss(logits, 0.3 * soft + 0.7 * soft.flip(0)), mixed)
    empty = create_loss(name, [3, 2, 1, 0])  # a class without images is no part of the target
    assert torch.isfinite(empty(logits, torch.tensor([[0.5, 0.5, 0.0, 0.0]] * 9)))


@pytest.mark.parametrize("name", LOSSES)
def test_one_contract_for_targets(name):
    logits, target = batch()
    loss = create_loss(name, COUNTS)
    for unlabelled in (-1, -100):
        part = target.clone()
        part[:4] = unlabelled
        torch.testing.assert_close(loss(logits, part), loss(logits[4:], target[4:]))
        assert loss(logits, torch.full_like(target, unlabelled)) == 0
    wrong = [target[:, None], target.float(), nn.functional.one_hot(target, 4), target > 1, target[1:], target + 2]
    for each in [*wrong, torch.ones(9, 4), torch.ones(9, 3) / 3]:
        with pytest.raises(ValueError, match="label|target"):
            loss(logits, each)
    for each in (torch.full((9, 4), -0.25), target.tolist(), None):
        with pytest.raises(ValueError, match="target"):
            loss(logits, each)
    for each in (logits[0], logits[None], logits.long(), logits.numpy(), None):
        with pytest.raises(ValueError, match="logits must be a floating-point tensor"):
            loss(each, target)


@pytest.mark.parametrize("name", LOSSES)
def test_double_precision_stays(name):
    logits, target = batch()
    logits = logits.double().requires_grad_()
    loss = create_loss(name, COUNTS)
    assert loss(logits, target).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda z: loss(z, target), logits)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: create_loss("typo", COUNTS), "unknown loss 'typo'.*focal"),
        (lambda: create_loss("balanced_softmax", [0, 0]), "all zero"),
        (lambda: create_loss("os:path", COUNTS), "os:path must be a class"),
        (lambda: create_loss("torch.nn:Linear", COUNTS), "torch.nn:Linear as Class.*out_features"),
        (lambda: create_loss("collections:Counter", COUNTS), "Counter must be a torch.nn.Module, got Counter"),
        (lambda: BalancedSoftmaxLoss(COUNTS)(torch.zeros(2, 5), torch.tensor([0, 1])), r"logits.*, 4\), got \(2, 5\)"),
        (lambda: FocalLoss(-1), "gamma.*-1"),
        (lambda: FocalLoss(1e300), "gamma.*1e\\+300"),
        (lambda: BalancedSoftmaxLoss(COUNTS, tau=-1), "tau.*-1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
