"""Angular variance, against the formula written out."""

import math

import pytest
import torch

from mbj_plugin.diagnostics.jitter import angular_variance, class_angular_variance


def reference(vectors):
    unit = [v / v.norm() for v in vectors.double()]
    mean = sum(unit) / len(unit)
    mean = mean / mean.norm()
    return sum(math.acos(min(1.0, float(u @ mean))) ** 2 for u in unit) / len(unit)


def test_angular_variance_is_the_formula_whatever_the_lengths():
    vectors = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    vectors[..., 0] += 2  # around one direction
    lengths = torch.rand(3, 7, 1, generator=torch.Generator().manual_seed(1)) + 0.1
    expected = torch.tensor([reference(v) for v in vectors], dtype=torch.float64)
    torch.testing.assert_close(angular_variance(vectors), expected)
    torch.testing.assert_close(angular_variance(vectors * lengths), expected)
    assert angular_variance(vectors[0]).shape == ()


def test_two_directions_half_an_angle_apart():
    angle = 1e-4
    vectors = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    assert angular_variance(vectors).item() == pytest.approx((angle / 2) ** 2, rel=1e-6)


def test_classes_apart_empty_slots_and_too_few_rows():
    rows = torch.randn(8, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    labels = torch.tensor([0, 2, -1, 0, 0, 2, 3, -1])
    variance = class_angular_variance(rows, labels, 5)
    for c in (0, 2):
        assert variance[c].item() == pytest.approx(reference(rows[labels == c]))
    assert variance[[1, 3, 4]].isnan().all()
