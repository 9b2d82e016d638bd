"""Probe images: which, what is computed of them, and that recording changes nothing."""

import math

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
    assert set(first) <= set(indices.tolist()) and len(indices) <= 18
    assert set(choose_probe([0, 0, 0, 1], [3, 1])[1]) == {"head", "tail"}


def test_jitter_is_the_angular_variance_of_the_last_records_also_of_saved_ones():
    features = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0)) + 1
    feed = iter(features)
    probe = Probe(lambda: next(feed), ["head", "tail", "tail"], history=3)
    assert all(math.isnan(value) for value in probe.scalars().values())
    probe.scalars()
    resumed, other = (Probe(lambda: next(feed), groups, history=3) for groups in (["head", "tail", "tail"], ["head"]))
    resumed.load_state_dict(probe.state_dict())
    other.load_state_dict(probe.state_dict())  # of other images: left out
    assert len(resumed.records) == 2 and not other.records
    for _ in range(3):
        scalars = resumed.scalars()
    per_image = angular_variance(features[2:5].transpose(0, 1))
    assert scalars["mbj/probe_jitter_head"] == pytest.approx(float(per_image[0]))
    assert scalars["mbj/probe_jitter_tail"] == pytest.approx(float(per_image[1:].mean()))
    assert math.isnan(scalars["mbj/probe_jitter_medium"])


def test_a_record_that_fails_ends_the_probe_and_not_the_run(caplog):
    feed = iter(torch.randn(2, 2, 4))
    monitor = Monitor([1], probe=Probe(lambda: next(feed), ["head", "tail"]))
    rows = [monitor.scalars() for _ in range(4)]
    assert rows[1]["mbj/probe_jitter_tail"] > 0 and rows[2:] == [{}, {}] and monitor.state_dict() == {}
    assert len(caplog.messages) == 1 and "StopIteration" in caplog.text


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.frozen, self.drop = nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.Dropout(0.5)
        self.frozen.eval()

    def forward(self, x):
        torch.rand(1)
        return self.drop(self.frozen(self.norm(x)))


def test_evaluating_leaves_modes_statistics_and_torchs_generators_as_they_were():
    model = Noisy()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    torch.manual_seed(0)
    expected = torch.rand(())
    torch.manual_seed(0)
    with evaluating(model):
        first, second = model(torch.ones(4, 3)), model(torch.ones(4, 3))
    assert torch.equal(first, second) and not first.requires_grad
    assert torch.rand(()) == expected
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    model(torch.ones(4, 3))  # this test can fail
    assert torch.rand(()) != expected and not torch.equal(model.norm.running_mean, state["norm.running_mean"])
