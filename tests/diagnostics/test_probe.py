"""Probe images: which, what is computed of them, and that recording changes nothing."""

import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from mbj_plugin.diagnostics.jitter import angular_variance
from mbj_plugin.diagnostics.monitor import Monitor
from mbj_plugin.diagnostics.probe import Probe, choose_probe, evaluating


def test_a_few_images_of_a_few_classes_of_each_group():
    counts = np.array([40, 30, 20, 10, 5, 4, 3, 2, 1, 1])
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), counts))
    indices, groups = choose_probe(labels, counts)
    expected = {"head": [0, 1], "medium": [2, 3], "tail": [4, 6, 9]}  # np.linspace(0, 5, 3) rounds to 0, 2, 5
    for name, classes in expected.items():
        own = labels[indices[np.array(groups) == name]]
        assert own.tolist() == [c for c in classes for _ in range(min(2, counts[c]))]
    first = [np.flatnonzero(labels == c)[0] for c in (0, 9)]
    assert set(first) <= set(indices.tolist())
    assert len(indices) <= 18


def test_two_classes_are_a_head_and_a_tail():
    indices, groups = choose_probe([0, 0, 0, 1], [3, 1])
    assert set(groups) == {"head", "tail"}
    assert len(indices) == len(groups)


def make_probe(features, **kwargs):
    feed = iter(features)
    return Probe(lambda: next(feed), ["head", "tail", "tail"], **kwargs)


def test_jitter_is_the_angular_variance_of_the_last_records():
    features = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0)) + 1
    probe = make_probe(features, history=3, period=1)
    for step in range(5):
        probe.record(step)
        if step == 0:
            assert all(math.isnan(value) for value in probe.scalars(step).values())
    per_image = angular_variance(features[2:5].transpose(0, 1))
    scalars = probe.scalars(step)
    assert scalars["mbj/probe_jitter_head"] == pytest.approx(float(per_image[0]))
    assert scalars["mbj/probe_jitter_tail"] == pytest.approx(float(per_image[1:].mean()))
    assert math.isnan(scalars["mbj/probe_jitter_medium"])


def test_it_records_once_a_period():
    probe = make_probe(torch.randn(9, 3, 4), period=50)
    recorded = []
    for step in range(20, 220, 20):
        before = len(probe.records)
        probe.record(step)
        recorded += [step] * (len(probe.records) - before)
    assert recorded == [20, 80, 140, 200]


def test_saved_records_go_on():
    features = torch.randn(5, 3, 4)
    whole, first = make_probe(features, period=1), make_probe(features, period=1)
    for step in range(5):
        whole.record(step)
    for step in range(3):
        first.record(step)
    second = make_probe(features[3:], period=1)
    second.load_state_dict(first.state_dict())
    for step in range(3, 5):
        second.record(step)
    assert second.scalars(4) == pytest.approx(whole.scalars(4), nan_ok=True)
    other = Probe(lambda: torch.zeros(2, 4), ["head", "tail"])
    other.load_state_dict(first.state_dict())  # of other images: left out
    assert not other.records


def test_a_record_that_fails_ends_the_probe_and_not_the_run(caplog):
    def features():
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        calls.append(1)
        return torch.randn(2, 4)

    calls: list[int] = []
    monitor = Monitor([1], probe=Probe(features, ["head", "tail"], period=1))
    rows = [monitor.scalars(step) for step in range(4)]
    assert rows[1]["mbj/probe_jitter_tail"] > 0
    assert all(row.keys() == rows[0].keys() and math.isnan(row["mbj/probe_jitter_tail"]) for row in rows[2:])
    assert len(caplog.messages) == 1 and "out of memory" in caplog.text


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.frozen, self.drop = nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.Dropout(0.5)
        self.frozen.eval()

    def forward(self, x):
        random.random(), np.random.rand(), torch.rand(1)
        return self.drop(self.frozen(self.norm(x)))


def test_evaluating_leaves_modes_statistics_and_generators_as_they_were():
    model = Noisy()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]

    def draws():
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    def seed():
        random.seed(0), np.random.seed(0), torch.manual_seed(0)

    seed()
    expected = draws()
    seed()
    with evaluating(model):
        first, second = model(torch.ones(4, 3)), model(torch.ones(4, 3))
    assert torch.equal(first, second) and not first.requires_grad
    assert draws() == expected
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    model(torch.ones(4, 3))  # this test can fail
    assert draws() != expected and not torch.equal(model.norm.running_mean, state["norm.running_mean"])
