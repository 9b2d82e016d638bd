"""K of the M rows a step: the same expectation as the whole memory."""

import pytest
import torch
from memory_batches import COUNTS

from mbj_plugin import FeatureMemoryLoss
from mbj_plugin.sampling import counter_uniform, sample_slots


def filled_loss(filled, **kwargs):
    """A loss that remembers so many rows in 12 slots, and a weight."""
    g = torch.Generator().manual_seed(0)
    loss = FeatureMemoryLoss(COUNTS, dim=4, size=12, eta=1.0, beta=0.0, norm="max", **kwargs)
    loss.bank.enqueue(torch.randn(filled, 4, generator=g), torch.arange(filled) % 3)
    return loss, torch.nn.Parameter(torch.randn(3, 4, generator=g))


def value_and_gradient(loss, weight, step):
    loss.step.fill_(step)
    loss.start = 0  # reads the step
    value = loss.eval()(torch.zeros(1, 4), torch.tensor([0]), weight)
    return torch.cat([value[None], torch.autograd.grad(value, weight)[0].flatten()]).detach()


@pytest.mark.parametrize("filled", [12, 7])
def test_the_mean_over_draws_is_the_whole(filled):
    whole, weight = filled_loss(filled)
    part, _ = filled_loss(filled, sample=4)
    draws = torch.stack([value_and_gradient(part, weight, step) for step in range(2000)])
    expected = value_and_gradient(whole, weight, 0)
    spread = draws.std(0)
    assert (spread > 0).all()
    assert ((draws.mean(0) - expected).abs() < 4 * spread / 2000**0.5).all()


def test_rows_are_drawn_without_replacement_and_empty_slots_come_last():
    filled = torch.arange(12) % 3 > 0  # 8 of 12
    counts = torch.zeros(12)
    for step in range(3000):
        slots = sample_slots(filled, counter_uniform(torch.tensor(0), torch.tensor(step), 12), 4)
        assert len(set(slots.tolist())) == 4
        counts[slots] += 1
    assert (counts[~filled] == 0).all()
    assert (counts[filled] / 3000 - 0.5).abs().max() < 4 * 0.5 / 3000**0.5
    assert filled[sample_slots(filled, counter_uniform(torch.tensor(0), torch.tensor(0), 12), 10)].sum() == 8


@pytest.mark.parametrize(("filled", "sample"), [(7, 9), (12, 12), (0, 4), (12, 0), (12, None)])
def test_a_sample_that_holds_all_is_the_whole(filled, sample):
    whole, weight = filled_loss(filled)
    part, _ = filled_loss(filled, sample=sample)
    torch.testing.assert_close(*(value_and_gradient(loss, weight, 3) for loss in (part, whole)))


def test_backward_reads_the_rows_from_before_the_enqueue():
    (part, weight), (before, _) = filled_loss(12, sample=4), filled_loss(12, sample=4)
    expected = value_and_gradient(before, weight, 0)[1:]
    part(torch.full((12, 4), 5.0), torch.zeros(12, dtype=torch.long), weight).backward()
    assert part.bank.rows.eq(5).all()
    torch.testing.assert_close(weight.grad.flatten(), expected)


@pytest.mark.parametrize("sample", [-1, 0.5, 501, "5"])
def test_bad_sample(sample):
    with pytest.raises(ValueError, match=rf"sample must be .*got {sample!r}"):
        FeatureMemoryLoss(COUNTS, dim=4, sample=sample)
