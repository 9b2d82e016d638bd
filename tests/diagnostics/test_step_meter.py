"""What is summed over steps, against counting by hand."""

import math

import pytest
import torch

from mbj_plugin.diagnostics.step_meter import StepMeter
from mbj_plugin.memory import MemoryBank


def bank_with(*labels):
    bank = MemoryBank(4, 2)
    if labels:
        bank.enqueue(torch.ones(len(labels), 2), torch.tensor(labels))
    return bank


def test_share_of_samples_with_a_positive_over_every_fourth_step():
    meter, zero = StepMeter(4), torch.zeros(())
    batches = {0: [0, 1, 2, 3, 2], 4: [1, -1, 3]}  # 3 of 5, then 1 of 3: no label, no positive
    for step in range(8):
        banks = [bank_with(2, 0)] if step < 4 else [bank_with(2), bank_with(3)]
        meter.count_positives(torch.tensor(batches.get(step, [2, 2])), banks)
        meter.close_step(zero, zero)
    assert meter.scalars()["mbj/positive_share"] == pytest.approx(4 / 8)


@pytest.mark.parametrize("steps", [1, 63, 64, 65, 200])
def test_mean_losses_over_all_steps(steps):
    meter, g = StepMeter(4), torch.Generator().manual_seed(0)
    losses = torch.rand(steps, 2, generator=g)
    for memory, batch in losses:
        meter.close_step(memory, batch.bfloat16())
    scalars = meter.scalars()
    assert scalars["mbj/loss_memory"] == pytest.approx(float(losses[:, 0].double().mean()), rel=1e-6)
    assert scalars["mbj/loss_batch"] == pytest.approx(float(losses[:, 1].bfloat16().double().mean()), rel=1e-6)
    assert all(math.isnan(value) for value in meter.scalars().values())  # it has started anew


def test_an_empty_memory_has_no_positives():
    meter = StepMeter(3)
    meter.count_positives(torch.tensor([-1, 0, 1]), [bank_with()])
    meter.close_step(torch.zeros(()), torch.zeros(()))
    assert meter.scalars()["mbj/positive_share"] == 0


def test_mixed_labels_count_by_their_share():
    meter = StepMeter(3)
    meter.count_positives(torch.tensor([[0.75, 0.25, 0.0], [0.0, 0.5, 0.5]]), [bank_with(1)])
    meter.close_step(torch.zeros(()), torch.zeros(()))
    assert meter.scalars()["mbj/positive_share"] == pytest.approx(0.75 / 2)


def test_nothing_is_read_in_a_step():
    """On the meta device, which has no values, whatever would wait for one is an error."""
    meter, bank = StepMeter(3), MemoryBank(4, 2).to("meta")
    labels, loss = torch.zeros(5, dtype=torch.long, device="meta"), torch.zeros((), device="meta")
    for _ in range(70):
        meter.count_positives(labels, [bank])
        meter.close_step(loss, loss)
    with pytest.raises((NotImplementedError, RuntimeError)):
        meter.scalars()
