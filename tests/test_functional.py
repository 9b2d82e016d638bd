"""Each equation against plain loops written from the paper's formula, in float64; gradients by gradcheck."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from mbj_plugin import functional
from mbj_plugin.functional import (
    cosface_loss,
    memory_cross_entropy,
    multi_prototype_loss,
    sampling_probs,
)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class TestSamplingProbs:
    @pytest.mark.parametrize("beta", [0.0, 1.0, 1.5, 7.0])
    def test_sum_is_equation_1(self, beta):
        counts = [500, 60, 7, 1]
        total = sum((1 / n) ** beta for n in counts)
        expected = [(1 / n) ** beta / total for n in counts]
        probs = sampling_probs(torch.tensor(counts, dtype=torch.float64), beta=beta)
        torch.testing.assert_close(probs, torch.tensor(expected, dtype=torch.float64), rtol=1e-13, atol=0)

    def test_max_lets_every_row_of_the_rarest_class_in(self):
        probs = sampling_probs(torch.tensor([100.0, 4.0], dtype=torch.float64), norm="max")
        assert probs[1] == 1
        assert probs[0].item() == pytest.approx((4 / 100) ** 1.5, rel=1e-13)

    @pytest.mark.parametrize("norm", ["sum", "max"])
    def test_a_class_without_images_has_no_part(self, norm):
        with_empty = sampling_probs([10, 0, 2], norm=norm)
        without = sampling_probs([10, 2], norm=norm)
        assert with_empty[1] == 0
        torch.testing.assert_close(with_empty[[0, 2]], without)

    def test_integer_counts_give_the_default_dtype(self):
        assert sampling_probs([3, 1]).dtype == torch.float32
        assert sampling_probs(torch.tensor([3, 1])).dtype == torch.float32

    @pytest.mark.parametrize("counts", [[0.25, 1.0], [True, False], [5, True], {10**9: 3}, {0: 2, 1: 1.5}])
    def test_no_counts(self, counts):
        with pytest.raises(ValueError, match="class_counts"):
            sampling_probs(counts)

    def test_huge_counts_and_beta_stay_finite(self):
        probs = sampling_probs([10**9, 10**8], beta=300.0)
        assert probs.tolist() == [0.0, 1.0]

    @pytest.mark.parametrize(
        ("counts", "kwargs", "message"),
        [
            ([], {}, "shape"),
            ([[1, 2]], {}, "shape"),
            ([3, -1], {}, ">= 0"),
            ([3.0, float("nan")], {}, "whole numbers"),
            ([0, 0], {}, "all zero"),
            ([3, 1], {"beta": -0.5}, "beta.*-0.5"),
            ([3, 1], {"beta": float("inf")}, "beta.*inf"),
            ([3, 1], {"norm": "mean"}, "norm.*'mean'"),
        ],
    )
    def test_bad_input(self, counts, kwargs, message):
        with pytest.raises(ValueError, match=message):
            sampling_probs(counts, **kwargs)


def cross_entropy_by_loops(features, labels, weight, bias):
    losses = []
    for x, y in zip(features, labels, strict=True):
        if y >= 0:
            logits = [sum(a * b for a, b in zip(x, w, strict=True)) + b0 for w, b0 in zip(weight, bias, strict=True)]
            losses.append(math.log(sum(math.exp(z) for z in logits)) - logits[y])
    return sum(losses) / len(losses) if losses else 0.0


class TestMemoryCrossEntropy:
    labels = torch.tensor([2, -1, 0, 0, -7, 1])  # whatever is below 0 is empty

    @pytest.mark.parametrize("chunk", [2**24, 4])
    def test_value_and_gradient(self, monkeypatch, chunk):
        monkeypatch.setattr(functional, "CHUNK_LOGITS", chunk)
        monkeypatch.setattr(functional, "TORCH_CHUNKS", False)
        features, weight, bias = randn(6, 4), randn(3, 4, seed=1).requires_grad_(), randn(3, seed=2).requires_grad_()
        loss = memory_cross_entropy(features, self.labels, weight, bias)
        expected = cross_entropy_by_loops(features.tolist(), self.labels.tolist(), weight.tolist(), bias.tolist())
        assert loss.item() == pytest.approx(expected, rel=1e-13)
        assert torch.autograd.gradcheck(lambda w, b: memory_cross_entropy(features, self.labels, w, b), (weight, bias))

    def test_one_row_of_many_is_the_mean_of_one(self):
        features, weight, bias, labels = randn(5, 4), randn(3, 4, seed=1), randn(3, seed=2), [-1, -1, 2, -1, -1]
        expected = cross_entropy_by_loops(features.tolist(), labels, weight.tolist(), bias.tolist())
        value = memory_cross_entropy(features, torch.tensor(labels), weight, bias)
        assert value.item() == pytest.approx(expected, rel=1e-13)

    def test_half_precision_is_computed_in_fp32(self):
        args = [randn(6, 4).bfloat16(), self.labels, randn(3, 4, seed=1).bfloat16(), randn(3, seed=2).bfloat16()]
        expected = memory_cross_entropy(args[0].float(), self.labels.int(), args[2].float(), args[3].float())
        assert torch.equal(memory_cross_entropy(*args), expected)
        # Each of the three may be in full precision alone.
        for i in (0, 2, 3):
            mixed = [arg.float() if i == j else arg for j, arg in enumerate(args)]
            assert torch.equal(memory_cross_entropy(*mixed), expected)

    @pytest.mark.parametrize(("limit", "rows"), [(18, 6), (20, 6), (17, 5), (2, 1), (0, 1)])
    def test_rows_that_are_computed_at_once(self, monkeypatch, limit, rows):
        assert functional.CHUNK_LOGITS * 4 == 64 * 2**20  # bytes in fp32, as it says there

        def chunked(*args, **kwargs):
            raise AssertionError("chunked")

        monkeypatch.setattr(functional, "CHUNK_LOGITS", limit)
        monkeypatch.setattr(functional, "checkpoint", chunked)
        args = torch.zeros(rows, 4), torch.zeros(rows, dtype=torch.long), torch.zeros(3, 4)
        more = torch.zeros(rows + 1, 4), torch.zeros(rows + 1, dtype=torch.long), torch.zeros(3, 4)
        monkeypatch.setattr(functional, "TORCH_CHUNKS", False)
        assert memory_cross_entropy(*args).item() == pytest.approx(math.log(3))
        with pytest.raises(AssertionError, match="chunked"):
            memory_cross_entropy(*more)

    def test_no_gradient_reaches_the_features(self):
        features, weight = randn(6, 4).requires_grad_(), randn(3, 4).requires_grad_()
        memory_cross_entropy(features, self.labels, weight).backward()
        assert features.grad is None
        assert weight.grad.abs().sum() > 0

    def test_empty_memory_gives_zero_and_a_zero_gradient(self):
        weight = randn(3, 4).requires_grad_()
        loss = memory_cross_entropy(torch.zeros(5, 4), torch.full((5,), -1), weight)
        loss.backward()
        assert loss == 0
        assert weight.grad.eq(0).all()

    def test_what_an_empty_slot_holds_does_not_matter(self):
        features, weight = randn(6, 4), randn(3, 4).requires_grad_()
        clean = memory_cross_entropy(features, self.labels, weight)
        features[self.labels < 0] = float("nan")
        dirty = memory_cross_entropy(features, self.labels, weight)
        assert torch.equal(clean, dirty)
        assert torch.isfinite(torch.autograd.grad(dirty, weight)[0]).all()

    @pytest.mark.parametrize("by_torch", [False, True])
    def test_chunks_are_the_whole(self, monkeypatch, by_torch):
        if by_torch and not functional.TORCH_CHUNKS:
            pytest.skip("this torch has no linear_cross_entropy")
        features, parameters = randn(6, 4), (randn(3, 4).requires_grad_(), randn(3).requires_grad_())
        whole = memory_cross_entropy(features, self.labels, *parameters)
        monkeypatch.setattr(functional, "CHUNK_LOGITS", 7)
        monkeypatch.setattr(functional, "TORCH_CHUNKS", by_torch)
        chunked = memory_cross_entropy(features, self.labels, *parameters)
        gradients = [torch.autograd.grad(loss, parameters) for loss in (whole, chunked)]
        torch.testing.assert_close((chunked, *gradients[1]), (whole, *gradients[0]), rtol=1e-12, atol=1e-14)

    def test_autocast_computes_in_fp32(self):
        features, weight = randn(6, 4).float(), randn(3, 4).float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = memory_cross_entropy(features, self.labels, weight)
        exact = memory_cross_entropy(features.double(), self.labels, weight.double())
        assert loss.item() == pytest.approx(exact.item(), rel=1e-6)


def cosface_by_loops(cosine, labels, scale, margin):
    losses = []
    for row, y in zip(cosine, labels, strict=True):
        if y >= 0:
            others = [math.exp(scale * (c + margin - row[y])) for k, c in enumerate(row) if k != y]
            losses.append(math.log(1 + sum(others)))
    return sum(losses) / len(losses) if losses else 0.0


class TestCosFace:
    def test_value_and_gradient(self):
        cosine, labels = randn(5, 4).tanh().requires_grad_(), torch.tensor([0, 3, -4, 1, 1])
        expected = cosface_by_loops(cosine.tolist(), labels.tolist(), 16.0, 0.2)
        assert cosface_loss(cosine, labels).item() == pytest.approx(expected, rel=1e-13)
        assert torch.autograd.gradcheck(lambda c: cosface_loss(c, labels), (cosine,))

    def test_other_scale_and_margin_of_one_labelled_row(self):
        cosine, labels = randn(3, 4).tanh(), torch.tensor([-1, 2, -1])
        expected = cosface_by_loops(cosine.tolist(), labels.tolist(), 5.0, 0.35)
        assert cosface_loss(cosine, labels, 5.0, 0.35).item() == pytest.approx(expected, rel=1e-13)
        assert cosface_loss(cosine, labels, margin=0.35, scale=5.0).item() == pytest.approx(expected, rel=1e-13)

    def test_half_precision_is_computed_in_fp32(self):
        cosine, labels = randn(5, 4).tanh().bfloat16(), torch.tensor([0, 3, -1, 1, 1])
        assert torch.equal(cosface_loss(cosine, labels), cosface_loss(cosine.float(), labels.int()))

    def test_what_an_unlabelled_row_holds_does_not_matter(self):
        cosine = torch.tensor([[0.1, 0.5], [float("nan"), 0.0]], requires_grad=True)
        cosface_loss(cosine, torch.tensor([0, -1])).backward()
        assert torch.isfinite(cosine.grad).all()

    def test_nothing_labelled_is_zero(self):
        assert cosface_loss(randn(2, 3), torch.tensor([-1, -1])) == 0


def multi_prototype_by_loops(similarity, labels, prototype_labels, scale, margin):
    losses = []
    for row, y in zip(similarity, labels, strict=True):
        if y < 0:
            continue
        negatives = [math.exp(scale * (s + margin)) for s, k in zip(row, prototype_labels, strict=True) if 0 <= k != y]
        positives = [math.exp(-scale * s) for s, k in zip(row, prototype_labels, strict=True) if k == y]
        losses.append(math.log(1 + sum(negatives) * sum(positives)))
    return sum(losses) / len(losses) if losses else 0.0


class TestMultiPrototype:
    labels = torch.tensor([0, 2, 1, -1, 3, -5])
    prototype_labels = torch.tensor([0, 0, 1, -1, 3, 1, -2])

    def test_value_and_gradient(self):
        similarity = randn(6, 7).tanh().requires_grad_()
        args = (self.labels, self.prototype_labels)
        expected = multi_prototype_by_loops(similarity.tolist(), *(a.tolist() for a in args), 16.0, 0.2)
        assert multi_prototype_loss(similarity, *args).item() == pytest.approx(expected, rel=1e-13)
        assert torch.autograd.gradcheck(lambda s: multi_prototype_loss(s, *args), (similarity,))

    def test_other_scale_and_margin_of_one_labelled_sample(self):
        similarity, labels = randn(3, 7).tanh(), torch.tensor([-1, 1, -1])
        lists = similarity.tolist(), labels.tolist(), self.prototype_labels.tolist()
        value = multi_prototype_loss(similarity, labels, self.prototype_labels, 5.0, 0.35)
        assert value.item() == pytest.approx(multi_prototype_by_loops(*lists, 5.0, 0.35), rel=1e-13)

    @pytest.mark.parametrize("prototype_labels", [[-1, -1, -1], [1, 1, -1], [0, 0, -1]])
    def test_no_positive_or_no_negative_is_exactly_zero(self, prototype_labels):
        similarity = randn(1, 3).float().tanh().requires_grad_()
        loss = multi_prototype_loss(similarity, torch.tensor([0]), torch.tensor(prototype_labels))
        loss.backward()
        assert loss == 0
        assert similarity.grad.eq(0).all()

    def test_what_an_unlabelled_row_holds_does_not_matter(self):
        similarity = torch.tensor([[0.1, 0.5], [float("nan"), 0.0]], requires_grad=True)
        multi_prototype_loss(similarity, torch.tensor([0, -1]), torch.tensor([0, 1])).backward()
        assert torch.isfinite(similarity.grad).all()

    def test_nothing_labelled_is_zero(self):
        assert multi_prototype_loss(randn(2, 3), torch.tensor([-1, -1]), torch.tensor([0, 1, 2])) == 0

    def test_extreme_similarities_stay_finite(self):
        similarity = torch.tensor([[-1.0, 1.0]], requires_grad=True)
        loss = multi_prototype_loss(similarity, torch.tensor([0]), torch.tensor([0, 1]), scale=1000.0)
        loss.backward()
        assert loss.item() == pytest.approx(2200.0, rel=1e-5)
        assert similarity.grad.tolist() == [[-1000.0, 1000.0]]

    def test_half_precision_is_computed_in_fp32(self):
        similarity = randn(6, 7).tanh().bfloat16()
        loss = multi_prototype_loss(similarity, self.labels, self.prototype_labels)
        assert torch.equal(loss, multi_prototype_loss(similarity.float(), self.labels, self.prototype_labels))


def test_counts_by_class():
    expected = sampling_probs([3, 0, 9])
    assert torch.equal(sampling_probs(Counter([0, 0, 0, *[2] * 9])), expected)
    assert torch.equal(sampling_probs({2: 9, 0: 3}), expected)
    for wrong, message in (
        (None, "is None"),
        ({"cat": 3}, "got \\['cat'\\]"),
        ({"a": 1, "b": 1, "c": 1, "d": 1, 0: 1}, "got \\['a', 'b', 'c'\\]"),
        ({-1: 3, 0: 2}, "got \\[-1\\]"),
        ({}, "keys"),
        ({True: 3}, "got \\[True\\]"),
        ("abc", "got abc"),
        (np.array(["3", "4"]), "whole numbers, got"),
        ([None, 3], "whole numbers, got"),
        ([1e30, 2], "at most 1e\\+12"),
    ):
        with pytest.raises(ValueError, match=message):
            sampling_probs(wrong)
