"""MBJ-F: bank + draw + equation, in the order loss first, memory after."""

import copy

import pytest
import torch
from memory_batches import ALWAYS, COUNTS, batch

from mbj_plugin import FeatureMemoryLoss, losses, memory, memory_cross_entropy, sampling
from mbj_plugin.sampling import counter_uniform, hard_labels, sample_slots


def test_loss_first_then_enqueue(weight):
    loss = FeatureMemoryLoss(COUNTS, dim=4, size=20, eta=3.0, **ALWAYS)
    bias = torch.randn(3)
    (x0, y0), (x1, y1) = batch(0), batch(1)
    assert loss(x0, y0, weight, bias) == 0
    second = loss(x1, y1, weight, bias)
    torch.testing.assert_close(second, 3.0 * memory_cross_entropy(x0, y0, weight, bias))
    assert loss.bank.filled == 12


@pytest.mark.parametrize("device_path", [False, True])
def test_backward_after_enqueue_reaches_the_classifier_only(weight, device_path, monkeypatch):
    if device_path:
        monkeypatch.setattr(memory, "on_host", lambda tensor: False)
    loss = FeatureMemoryLoss(COUNTS, dim=4, size=6, eta=3.0, **ALWAYS)
    loss(*batch(0), weight)  # full: the next step writes over every row and label
    features, labels = batch(1)
    features.requires_grad_()
    loss(features, labels, weight).backward()
    assert features.grad is None
    expected = torch.autograd.grad(3.0 * memory_cross_entropy(*batch(0), weight), weight)[0]
    torch.testing.assert_close(weight.grad, expected)


def test_rare_classes_enter_more_often(weight):
    loss = FeatureMemoryLoss(COUNTS, dim=4, size=100_000, norm="max")
    labels = torch.arange(3).repeat_interleave(4000)
    for _ in range(5):
        loss(torch.randn(12000, 4), labels, weight)
    entered = torch.bincount(loss.bank.labels[loss.bank.labels >= 0], minlength=3) / 20000
    torch.testing.assert_close(entered, loss.probs, rtol=0, atol=0.01)


def test_unlabelled_rows_do_not_enter(weight):
    loss = FeatureMemoryLoss(COUNTS, dim=4, **ALWAYS)
    loss(torch.randn(3, 4), torch.tensor([-1, 2, -1]), weight)
    assert loss.bank.filled == 1


@pytest.mark.parametrize("target", [[0.7, 0.0, 0.0, 0.3], [0.5, 0.3, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]])
def test_soft_labels_enter_with_their_share(target):
    loss = FeatureMemoryLoss([8, 4, 2, 1], dim=4, size=100_000, beta=1.0, norm="max")
    target = torch.tensor(target)
    loss(torch.randn(40_000, 4), target.expand(40_000, 4), torch.randn(4, 4))
    entered = torch.bincount(loss.bank.labels[loss.bank.labels >= 0], minlength=4) / 40_000
    torch.testing.assert_close(entered, target * loss.probs, rtol=0, atol=0.01)


def test_soft_labels_without_a_class_do_not_enter(weight):
    loss = FeatureMemoryLoss(COUNTS, dim=4, **ALWAYS)
    loss(torch.randn(3, 4), torch.tensor([[0.0, 0, 0], [float("nan"), 1, 0], [0, 1, 0]]), weight)
    assert loss.bank.labels[:2].tolist() == [1, -1]


def test_weight_of_other_classes():
    with pytest.raises(ValueError, match="weight has 2 classes, the class counts 3"):
        FeatureMemoryLoss(COUNTS, dim=4)(torch.randn(2, 4), torch.tensor([0, 1]), torch.randn(2, 4))


def test_before_the_start_it_remembers_but_does_not_count(weight):
    loss = FeatureMemoryLoss(COUNTS, dim=4, start=2, **ALWAYS)
    values = [loss(*batch(step), weight).item() for step in range(3)]
    assert values[:2] == [0, 0]
    assert values[2] > 0
    assert loss.bank.filled == 18


@pytest.mark.parametrize("soft", [False, True])
def test_the_draw_is_frozen(weight, soft):
    """The same seed gives the same run, in the next version too."""
    loss = FeatureMemoryLoss(COUNTS, dim=4, size=5, norm="max", seed=3)
    torch.manual_seed(0)
    x, y = torch.randn(400, 4), torch.randint(0, 3, (400,)).where(torch.rand(400) > 0.1, torch.tensor(-100))
    given = torch.rand(400, 3).softmax(1) if soft else y.int()
    loss(x, given, weight)
    seed, step = torch.tensor(3), torch.tensor(0)
    drawn = hard_labels(given, counter_uniform(seed, step, 400, stream=1))
    enters = (counter_uniform(seed, step, 400, stream=0) < loss.probs[drawn.clamp(min=0)]) & (drawn >= 0)
    assert torch.equal(loss.bank.rows.sort(0).values, x[enters][-5:].sort(0).values)
    assert sorted(loss.bank.labels.tolist()) == sorted(drawn[enters][-5:].tolist())
    # Of the memory too.
    whole = copy.deepcopy(loss)
    loss.sample = 2
    slots = sample_slots(whole.bank.labels >= 0, counter_uniform(seed, step + 1, 5, stream=-1), 2)
    expected = 15.0 * memory_cross_entropy(whole.bank.rows[slots], whole.bank.labels[slots], weight)
    assert torch.equal(loss(x, given, weight), expected)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("filled", [0, 1, 5, 7])
@pytest.mark.parametrize("sample", [0, 4])
def test_the_mean_of_the_ranks_is_the_whole(weight, filled, sample, world):
    loss = FeatureMemoryLoss(COUNTS, dim=4, size=7, sample=sample)
    loss.bank.enqueue(torch.randn(filled, 4), torch.arange(filled) % 3)
    whole = loss._memory_loss(weight, None, 0, 1)
    parts = [loss._memory_loss(weight, None, rank, world) for rank in range(world)]
    gradients = [torch.autograd.grad(value, weight)[0] for value in (whole, sum(parts) / world)]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(sum(parts) / world, whole)
    assert (whole > 0) == (filled > 0)


def test_rows_of_all_ranks_enter_in_their_order(weight, monkeypatch):
    (x0, y0), (x1, y1) = batch(0), batch(1)

    def all_gather(parts, mine):
        other = y0 if mine.ndim == 1 else x0
        assert mine.dtype == other.dtype and not mine.requires_grad
        for part, rows in zip(parts, (other, mine), strict=True):
            part.copy_(rows)

    for module in (losses, sampling):
        monkeypatch.setattr(module, "rank_and_world", lambda: (1, 2))
    monkeypatch.setattr(sampling.dist, "all_gather", all_gather)
    monkeypatch.setattr(losses, "check_even", lambda rows: None)
    loss = FeatureMemoryLoss(COUNTS, dim=4, size=20, **ALWAYS)
    loss(x1.requires_grad_(), y1, weight)
    assert torch.equal(loss.bank.rows[:12], torch.cat([x0, x1])) and loss.bank.filled == 12
    assert torch.equal(loss.bank.labels[:12], torch.cat([y0, y1]))
    # Out of training nothing is shared: each rank may see other batches.
    monkeypatch.setattr(sampling.dist, "all_gather", None)
    torch.testing.assert_close(loss.eval()(x1, y1, weight), 15.0 * loss._memory_loss(weight, None, 0, 1))


def test_before_the_start_weight_and_bias_are_in_use(weight):
    bias = torch.nn.Parameter(torch.zeros(3))
    for parameters in ((weight,), (weight, bias)):
        value = FeatureMemoryLoss(COUNTS, dim=4, start=9)(*batch(0), *parameters)
        assert {node.variable for node, _ in value.grad_fn.next_functions if node} == set(parameters)


def test_a_sample_may_be_the_whole_memory(weight):
    whole, sampled = (FeatureMemoryLoss(COUNTS, dim=4, size=6, sample=k, **ALWAYS) for k in (0, 6))
    values = [[loss(*batch(step), weight) for step in range(2)] for loss in (whole, sampled)]
    torch.testing.assert_close(*values)
    with pytest.raises(ValueError, match="sample must be at most the memory's 6 rows, got 7"):
        FeatureMemoryLoss(COUNTS, dim=4, size=6, sample=7)


def test_only_on_a_cpu_the_ranks_batches_are_counted(monkeypatch):
    for module in (losses, sampling):
        monkeypatch.setattr(module, "rank_and_world", lambda: (0, 2))
    monkeypatch.setattr(sampling.dist, "all_gather", None)
    sampling.check_even(torch.empty(2, 4, device="meta"))
    with pytest.raises(TypeError):
        sampling.check_even(torch.empty(2, 4))


def test_only_learning_steps_are_remembered(weight):
    loss = FeatureMemoryLoss(COUNTS, dim=4, **ALWAYS)
    with torch.no_grad():
        loss(*batch(0), weight)
    loss.eval()
    loss(*batch(0), weight)
    assert loss.bank.filled == 0
    assert loss.step == 0


def test_counts_may_come_later(weight):
    loss = FeatureMemoryLoss(None, dim=4)
    with pytest.raises(ValueError, match="set_class_counts"):
        loss(*batch(0), weight)
    loss.set_class_counts(COUNTS)
    loss(*batch(0), weight)
