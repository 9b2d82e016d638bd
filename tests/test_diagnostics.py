"""The memory report, against a loop over the bank's slots and the formula written out."""

import math

import pytest
import torch
from torch import nn

from mbj_plugin.diagnostics import angular_variance, memories_report, memory_report
from mbj_plugin.longtail import class_groups
from mbj_plugin.memory import MemoryBank

COUNTS = [50, 3, 20, 2, 1]  # head 0, medium 2, tail 1, 3, 4


def reference(vectors):
    unit = [v / v.norm() for v in vectors.double()]
    mean = sum(unit) / len(unit)
    mean = mean / mean.norm()
    return sum(math.acos(min(1.0, float(u @ mean))) ** 2 for u in unit) / len(unit)


def test_angular_variance_is_the_formula_whatever_the_lengths():
    rows = torch.randn(8, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    labels = torch.tensor([0, 2, 1, 0, 0, 2, 4, 0])
    lengths = torch.rand(8, 1, generator=torch.Generator().manual_seed(1)) + 0.1
    for variance in (angular_variance(rows, labels, 5), angular_variance(rows * lengths, labels, 5)):
        assert variance[0].item() == pytest.approx(reference(rows[labels == 0]))
        assert variance[2].item() == pytest.approx(reference(rows[labels == 2]))
        assert variance[[1, 3, 4]].isnan().all()  # fewer than two rows


def test_two_directions_half_an_angle_apart():
    angle = 1e-4
    rows = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    assert angular_variance(rows, torch.tensor([0, 0]), 1).item() == pytest.approx((angle / 2) ** 2, rel=1e-6)


def filled_bank(calls=4, size=14):
    bank, g = MemoryBank(size, 3), torch.Generator().manual_seed(0)
    for call in range(calls):
        labels = torch.tensor([0, 1, 3, 0]) if call % 2 else torch.tensor([3, 1, -1, 3])
        bank.enqueue(torch.randn(4, 3, generator=g) + 2, labels)
    return bank


@pytest.mark.parametrize("calls", [1, 2, 4, 7])  # 7: the queue has gone round
def test_it_is_what_a_loop_over_the_slots_finds(calls):
    bank = filled_bank(calls)
    report = memory_report(bank, COUNTS)
    rows = list(zip(bank.rows.double(), bank.labels.tolist(), bank.ages.tolist(), strict=True))
    rows = [row for row in rows if row[1] >= 0]
    assert report["fill"] == len(rows) / 14
    assert report["coverage"] == len({label for _, label, _ in rows}) / 5
    for name in ("head", "medium", "tail"):
        classes = class_groups(COUNTS)[name].tolist()
        inside = [row for row in rows if row[1] in classes]
        assert report[f"entries_{name}"] == len(inside)
        ages = [age for _, _, age in inside]
        expected = sum(ages) / len(ages) if ages else math.nan
        assert report[f"age_{name}"] == pytest.approx(expected, nan_ok=True)
        of_class = [torch.stack([r for r, y, _ in inside if y == c]) for c in {y for _, y, _ in inside}]
        spreads = [reference(rows) for rows in of_class if len(rows) > 1]
        expected = sum(spreads) / len(spreads) if spreads else math.nan
        assert report[f"jitter_{name}"] == pytest.approx(expected, nan_ok=True)


def test_an_empty_memory_has_the_same_keys():
    empty = memory_report(MemoryBank(4, 3), COUNTS)
    assert empty.keys() == memory_report(filled_bank(), COUNTS).keys()
    assert empty["fill"] == empty["coverage"] == empty["entries_tail"] == 0
    assert math.isnan(empty["age_tail"]) and math.isnan(empty["jitter_head"])


def test_several_heads_report_their_mean():
    heads = []
    for calls in (1, 4):
        holder = nn.Module()
        holder.bank = filled_bank(calls)
        heads.append({"prototype": holder})
    both = memories_report(heads, COUNTS)
    one, two = (memory_report(head["prototype"].bank, COUNTS) for head in heads)
    assert both["mbj/prototype/fill"] == pytest.approx((one["fill"] + two["fill"]) / 2)
    # The first head has no head-class rows yet.
    assert math.isnan(one["age_head"]) and both["mbj/prototype/age_head"] == two["age_head"]
    assert memories_report([], COUNTS) == {}
