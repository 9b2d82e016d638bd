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


def test_share_of_samples_with_a_positive_and_mean_losses():
    meter = StepMeter(4)
    meter.see(torch.tensor([0, 1, 2, 3, 2]), [bank_with(2, 0)])  # 3 of 5
    meter.add(torch.tensor(1.0), torch.tensor(4.0, dtype=torch.bfloat16))
    meter.see(torch.tensor([1, -1, 3]), [bank_with(2), bank_with(3)])  # 1 of 3: no label, no positive
    meter.add(torch.tensor(2.0), torch.tensor(5.0))
    scalars = meter.scalars()
    assert scalars == {"mbj/loss_memory": 1.5, "mbj/loss_batch": 4.5, "mbj/positive_share": pytest.approx(4 / 8)}
    assert all(math.isnan(value) for value in meter.scalars().values())  # it has started anew


def test_an_empty_memory_has_no_positives():
    meter = StepMeter(3)
    meter.see(torch.tensor([-1, 0, 1]), [bank_with()])
    meter.add(torch.zeros(()), torch.zeros(()))
    assert meter.scalars()["mbj/positive_share"] == 0


def test_mixed_labels_count_by_their_share():
    meter = StepMeter(3)
    meter.see(torch.tensor([[0.75, 0.25, 0.0], [0.0, 0.5, 0.5]]), [bank_with(1)])
    meter.add(torch.zeros(()), torch.zeros(()))
    assert meter.scalars()["mbj/positive_share"] == pytest.approx(0.75 / 2)


def test_nothing_is_read_in_a_step():
    """On the meta device, which has no values, whatever would wait for one is an error."""
    meter, bank = StepMeter(3), MemoryBank(4, 2).to("meta")
    labels, loss = torch.zeros(5, dtype=torch.long, device="meta"), torch.zeros((), device="meta")
    for _ in range(2):
        meter.see(labels, [bank])
        meter.add(loss, loss)
    with pytest.raises((NotImplementedError, RuntimeError)):
        meter.scalars()
