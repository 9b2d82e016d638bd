"""MBJ-W: bank + draw + equation, in the order loss first, memory after."""

import copy

import pytest
import torch
import torch.nn.functional as F
from memory_batches import ALWAYS, COUNTS, batch

from mbj_plugin import PrototypeMemoryLoss, losses, multi_prototype_loss, sampling
from mbj_plugin.sampling import counter_uniform, hard_labels


def test_loss_first_then_enqueue(weight):
    loss = PrototypeMemoryLoss(COUNTS, dim=4, size=7, eta=0.5, **ALWAYS)
    (x0, y0), (x1, y1) = batch(0), batch(1)
    x1.requires_grad_()
    assert loss(x0, y0, weight) == 0
    old = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1.0)
    second = loss(x1, y1, weight)
    similarity = F.normalize(x1, dim=1) @ F.normalize(old, dim=1).T
    torch.testing.assert_close(second, 0.5 * multi_prototype_loss(similarity, y1, torch.arange(3)))
    second.backward()
    assert weight.grad is None
    assert x1.grad.abs().sum() > 0
    assert loss.bank.filled == 6


def test_sum_enters_one_prototype_a_step_on_average():
    assert PrototypeMemoryLoss(COUNTS, dim=4).probs.sum().item() == pytest.approx(1.0)


def test_momentum_remembers_a_moving_average(weight):
    loss = PrototypeMemoryLoss(COUNTS, dim=4, momentum=0.9, **ALWAYS)
    first = weight.detach().clone()
    loss(*batch(0), weight)
    with torch.no_grad():
        weight.add_(1.0)
    loss(*batch(1), weight)
    torch.testing.assert_close(loss.bank.rows[:3], first)
    torch.testing.assert_close(loss.bank.rows[3:6], first + 0.1)


@pytest.mark.parametrize("rank", [0, 1])
def test_the_draw_is_frozen(weight, rank, monkeypatch):
    """Prototypes by seed and step alone; the class of a mixed image on each rank anew."""
    for module in (losses, sampling):
        monkeypatch.setattr(module, "rank_and_world", lambda: (rank, 2))
    loss = PrototypeMemoryLoss(range(1, 41), dim=4, size=99, beta=0.5, norm="max", seed=3, eta=1.0)
    torch.manual_seed(0)
    weight, seed, held, total = torch.randn(40, 4), torch.tensor(3), [], 0.0
    for step in range(6):
        x, soft = torch.randn(9, 4), torch.rand(9, 40).softmax(1)
        rows, labels = loss.bank.rows.clone(), loss.bank.labels.clone()
        value = loss(x, soft, weight)
        drawn = hard_labels(soft, counter_uniform(seed, torch.tensor(step), 9, stream=1 + rank))
        similarity = F.normalize(x, dim=1) @ F.normalize(rows, dim=1).T
        torch.testing.assert_close(value, multi_prototype_loss(similarity, drawn, labels))
        held += (counter_uniform(seed, torch.tensor(step), 40, stream=0) < loss.probs).nonzero()[:, 0].tolist()
        assert loss.bank.labels[: len(held)].tolist() == held and loss.bank.filled == len(held)
        total += value
    assert total > 0


def test_scale_and_margin_are_equation_4_s(weight):
    loss = PrototypeMemoryLoss(COUNTS, dim=4, eta=1.0, scale=5.0, margin=0.35, **ALWAYS)
    loss(*batch(0), weight)
    x, y = batch(1)
    similarity = F.normalize(x, dim=1) @ F.normalize(weight, dim=1).T
    expected = multi_prototype_loss(similarity, y, torch.arange(3), 5.0, 0.35)
    torch.testing.assert_close(loss(x, y, weight), expected)


def test_half_precision_is_computed_in_fp32(weight):
    half, full = (PrototypeMemoryLoss(COUNTS, dim=4, momentum=0.5, **ALWAYS) for _ in range(2))
    half.to(torch.bfloat16)
    for step in range(3):
        (x, y), w = batch(step), weight.detach() + step
        x, w = x.bfloat16(), w.bfloat16()
        value = half(x, y, w)
        assert value.dtype == torch.float32 and half.bank.rows.dtype == torch.float32
        torch.testing.assert_close(value, full(x.float(), y, w.float()), rtol=0.02, atol=0)


def test_momentum_without_counts():
    loss = PrototypeMemoryLoss(None, dim=4, momentum=0.5, num_classes=3)
    assert loss.momentum_weight.shape == (3, 4)
    assert PrototypeMemoryLoss(COUNTS, 4, momentum=0.5, num_classes=7).momentum_weight.eq(torch.zeros(3, 4)).all()
    assert "momentum_weight" not in PrototypeMemoryLoss(COUNTS, dim=4).state_dict()


def test_soft_labels_draw_one_class(weight):
    loss = PrototypeMemoryLoss(COUNTS, dim=4, **ALWAYS)
    loss(*batch(0), weight)
    x, y = batch(1)
    hard = copy.deepcopy(loss)(x, y, weight)
    assert torch.equal(loss(x, F.one_hot(y, 3).float(), weight), hard)


def test_autocast_computes_in_fp32(weight):
    loss = PrototypeMemoryLoss(COUNTS, dim=4, **ALWAYS)
    loss(*batch(0), weight)
    x, y = batch(1)
    similarity = F.normalize(x.double(), dim=1) @ F.normalize(weight.double(), dim=1).T
    exact = multi_prototype_loss(similarity, y, torch.arange(3)) / 7
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(x, y, weight).item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"scale": 0.0}, "scale.*0.0"),
        ({"scale": float("inf")}, "scale.*inf"),
        ({"margin": -0.1}, "margin.*-0.1"),
        ({"margin": float("inf")}, "margin.*inf"),
        ({"momentum": -0.1}, "momentum.*-0.1"),
        ({"momentum": 1.0}, "momentum.*1.0"),
        ({"class_counts": None, "momentum": 0.5}, "num_classes"),
    ],
)
def test_bad_prototype_input(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PrototypeMemoryLoss(**{"class_counts": COUNTS, "dim": 4, **kwargs})
