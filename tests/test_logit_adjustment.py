"""The classifiers after training against loops written from their formulas, in plain Python numbers."""

import math

import pytest
import torch
import torch.nn.functional as F

from mbj_plugin.logit_adjustment import (
    logit_adjusted,
    nearest_class_mean,
    tau_normalized,
)

C, D, N = 4, 3, 40
COUNTS = [50, 20, 7, 1]


@pytest.fixture
def numbers():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(N, D, generator=generator)
    labels = torch.arange(N) % C
    return features, labels, torch.randn(C, D, generator=generator), torch.randn(C, generator=generator)


def dot(a, b):
    return sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))


def norm(a):
    return math.sqrt(dot(a, a))


def assert_logits(classifier, features, expected):
    """``expected(x, c)`` is the slow logit of class c."""
    weight, bias = classifier
    slow = [[expected(x, c) for c in range(C)] for x in features]
    torch.testing.assert_close(F.linear(features, weight, bias), torch.tensor(slow), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tau", [0, 0.5, 1, 2])
def test_logit_adjustment_takes_tau_log_prior_off(numbers, tau):
    features, _, weight, bias = numbers

    def slow(x, c):
        return dot(weight[c], x) + bias[c].item() - tau * math.log(COUNTS[c] / sum(COUNTS))

    assert_logits(logit_adjusted(weight, bias, COUNTS, tau), features, slow)
    assert_logits(logit_adjusted(weight, None, COUNTS, tau), features, lambda x, c: slow(x, c) - bias[c].item())


@pytest.mark.parametrize("tau", [0, 0.7, 1, 2])
def test_tau_normalisation_divides_by_a_power_of_the_norm(numbers, tau):
    features, _, weight, _ = numbers
    assert_logits(tau_normalized(weight, tau), features, lambda x, c: dot(weight[c], x) / norm(weight[c]) ** tau)


def test_nearest_class_mean_answers_as_a_search_does(numbers):
    features, labels, *_ = numbers
    labels[3] = -1
    features[3] = 1e6  # unlabelled, so it moves no mean
    means = []
    for c in range(C):
        rows = [features[i].tolist() for i in range(N) if labels[i] == c]
        means.append(torch.tensor([sum(column) / len(rows) for column in zip(*rows, strict=True)]))
    weight, bias = nearest_class_mean(features, labels, C)
    for x in features:
        nearness = [dot(x, m) / norm(m) for m in means]
        assert int(F.linear(x, weight, bias).argmax()) == max(range(C), key=nearness.__getitem__)
    torch.testing.assert_close(nearest_class_mean(features, labels)[0], weight)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda w: logit_adjusted(w, None, COUNTS, -1), "tau must be a number from 0 to 100, got -1"),
        (lambda w: tau_normalized(w, float("nan")), "tau must be a number from 0 to 100, got nan"),
        (lambda w: logit_adjusted(w, None, [1, 2, 3]), r"class_counts must be \(4,\) like the classifier, got \(3,\)"),
        (lambda w: logit_adjusted(w, None, [5, 0, 3, 1]), "class 1 has none"),
        (lambda w: nearest_class_mean(w, torch.tensor([0, 2, 2, 0])), "class 1 has no feature"),
        (lambda w: nearest_class_mean(w, torch.full((4,), -1)), "class 0 has no feature"),
        (lambda w: logit_adjusted(w, None, COUNTS, 1e300), "tau.*1e\\+300"),
        (lambda w: logit_adjusted(w.numpy(), None, COUNTS), "weight must be a floating-point tensor.*ndarray"),
        (lambda w: logit_adjusted(w.long(), None, COUNTS), "weight must be a floating-point tensor.*int64"),
        (lambda w: logit_adjusted(w, torch.zeros(3), COUNTS), r"bias must be a tensor of shape \(4,\)"),
        (lambda w: nearest_class_mean(w, torch.arange(4.0)), "target must be .*integer"),
        (lambda w: nearest_class_mean(w, torch.arange(3)), r"target must be \(4,\)"),
        (lambda w: nearest_class_mean(w, torch.arange(4), num_classes=2), "label 3 is out of range"),
    ],
)
def test_a_wrong_value_is_named(numbers, call, said):
    with pytest.raises(ValueError, match=said):
        call(numbers[2])


def test_strengths_that_are_left_out(numbers):
    _, _, weight, bias = numbers
    pairs = [
        (logit_adjusted(weight, bias, COUNTS), logit_adjusted(weight, bias, COUNTS, 1.0)),
        (tau_normalized(weight), tau_normalized(weight, 1.0)),
    ]
    assert all(torch.equal(*each) for pair in pairs for each in zip(*pair, strict=True))


def test_a_class_whose_weight_is_zero_stays_finite():
    weight, _ = tau_normalized(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    torch.testing.assert_close(weight, torch.tensor([[0.0, 0.0], [0.6, 0.8]]))
