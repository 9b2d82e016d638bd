"""FeatureCloud against its formulas, written as loops over plain numbers, and in real training steps of fast-reid."""

import math
import statistics

import pytest
import torch
import torch.distributed as dist
from fastreid.layers import any_softmax
from torch.nn import functional as F

from benchmarks.rivals.feature_cloud import KEPT, FeatureCloud, _normal
from mbj_plugin.sampling import counter_uniform

COUNTS = [40, 30, 4, 4]  # two head classes, two of the tail
SCALE, MARGIN = 16.0, 0.2
LAYER = ("MODEL.HEADS.NAME", "EmbeddingHead", "MODEL.HEADS.CLS_LAYER", "FeatureCloud")
COSFACE = ("MODEL.HEADS.SCALE", 16, "MODEL.HEADS.MARGIN", 0.2)


@pytest.fixture
def layer():
    layer = FeatureCloud(4, SCALE, MARGIN)
    layer.set_class_counts(torch.tensor(COUNTS))
    return layer


def batch(angles, labels):
    """(B, 4) cosines whose own class is at the angles; the others at angles of 1.2 to 1.5."""
    cosine = torch.linspace(1.2, 1.5, 4 * len(labels)).view(-1, 4).cos()
    for i, (angle, label) in enumerate(zip(angles, labels, strict=True)):
        cosine[i, max(label, 0)] = math.cos(angle)
    return cosine, torch.tensor(labels)


def remember(layer, angles, labels):
    layer(*batch(angles, labels))


def cosface(cosine, targets):
    return any_softmax.CosSoftmax(4, SCALE, MARGIN)(cosine.clone(), targets)


# The two head classes vary by 0.2 and 0.1 rad^2 squared, class 2 by 0.05, class 3 by more than the heads.
FIRST = ([0.6, 1.0, 0.5, 0.7, 0.75, 0.85, 0.3, 1.3], [0, 0, 1, 1, 2, 2, 3, 3])


def test_the_cloud_is_as_wide_as_the_tail_class_is_narrower_than_the_heads(layer):
    remember(layer, *FIRST)
    spread = {label: [a for a, y in zip(*FIRST, strict=True) if y == label] for label in range(4)}
    variance = {label: statistics.variance(angles) for label, angles in spread.items()}
    head = (variance[0] + variance[1]) / 2
    expected = [0.0, 0.0, head - variance[2], 0.0]  # class 3 is wider than the heads already
    assert expected[2] > 0
    torch.testing.assert_close(layer.cloud_variances(), torch.tensor(expected).double(), atol=1e-6, rtol=0)


def test_old_angles_fade(layer):
    later = ([0.9, 0.4], [0, 2])
    remember(layer, *FIRST)
    remember(layer, *later)
    weights = [KEPT, KEPT, 1.0]

    def variance(angles):
        mean = sum(w * a for w, a in zip(weights, angles, strict=True)) / sum(weights)
        squares = sum(w * (a - mean) ** 2 for w, a in zip(weights, angles, strict=True))
        return squares / (sum(weights) - sum(w**2 for w in weights) / sum(weights))

    expected = (variance([0.6, 1.0, 0.9]) + statistics.variance([0.5, 0.7])) / 2 - variance([0.75, 0.85, 0.4])
    expected = max(expected, 0)
    assert layer.cloud_variances()[2].item() == pytest.approx(expected, abs=1e-6)
    # A class that was not there has lost nothing.
    assert layer.sums[0].tolist() == pytest.approx([2 * KEPT + 1, 2, 2 * KEPT + 1, 2])


def test_the_loss_is_cosface_on_the_moved_angle(layer):
    remember(layer, *FIRST)
    cosine, targets = batch([0.7, 0.7, 0.7, 0.7], [2, 0, 2, 3])
    drawn = layer._draw(targets).tolist()
    logits = layer(cosine.clone(), targets)
    deltas = []
    for i, label in enumerate(targets.tolist()):
        for c in range(4):
            value = cosine[i, c].item()
            if c == label:
                delta = math.acos(logits[i, c].item() / SCALE + MARGIN) - math.acos(value)
                assert delta == pytest.approx(drawn[i], abs=1e-5)
                deltas.append(delta)
            else:
                assert logits[i, c].item() == pytest.approx(SCALE * value, rel=1e-6)
    # Two of class 2 are moved, each its own way; the head, and a class wider than it, are not.
    assert [abs(delta) > 1e-3 for delta in deltas] == [True, False, True, False] and abs(deltas[0] - deltas[2]) > 1e-3


def test_a_feature_of_no_class_is_no_cloud():
    layer = FeatureCloud(4, SCALE, MARGIN)
    layer.set_class_counts(torch.tensor([4, 40, 30, 4]))
    remember(layer, [0.7, 0.7, 0.4, 0.9], [0, 0, 1, 1])
    assert layer.cloud_variances()[0] > 0
    before, (cosine, targets) = layer.sums.clone(), batch([0.7], [-1])
    torch.testing.assert_close(layer(cosine.clone(), targets), SCALE * cosine)
    assert torch.equal(layer.sums, before)


def test_delta_is_normal_with_the_variance_that_is_lacking(layer):
    remember(layer, *FIRST)
    wanted = layer.cloud_variances()[2].item()
    drawn = layer._draw(torch.full((20000,), 2))
    assert drawn.mean().item() == pytest.approx(0, abs=3 * math.sqrt(wanted / 20000))
    assert drawn.var().item() == pytest.approx(wanted, rel=0.04)
    inside = (drawn.abs() < math.sqrt(wanted)).float().mean().item()
    assert inside == pytest.approx(0.6827, abs=0.01)


def test_the_variance_of_few_angles_has_no_bias():
    """Classes that vary alike: what a tail class lacks is 0 on average, before it is cut at 0."""
    layer, heads = FeatureCloud(200, SCALE, MARGIN), 100
    layer.set_class_counts(torch.tensor([9] * heads + [1] * heads))
    generator, labels = torch.Generator().manual_seed(0), torch.arange(200)
    for _ in range(40):
        angles = 0.8 + 0.1 * torch.randn(200, generator=generator)
        layer._remember(angles.cos(), labels)
    weight, angle, square, weights = layer.sums
    unbiased = (square / weight - (angle / weight) ** 2) / (1 - weights / weight**2)
    assert unbiased.mean().item() == pytest.approx(0.01, rel=0.05)  # without the last factor it is 0.0095 or less
    clouds = layer.cloud_variances()
    lacking = (unbiased[:heads].mean() - unbiased[heads:]).clamp(min=0)
    torch.testing.assert_close(clouds, torch.cat([torch.zeros(heads).double(), lacking]))


def test_every_uniform_number_gives_a_finite_draw():
    seed, step = torch.tensor(11), torch.tensor(19395)
    uniform = torch.cat([counter_uniform(seed, step, 64), torch.tensor([0.0, 1 - 2.0**-24])])
    assert torch.isfinite(_normal(uniform)).all()


def test_it_is_cosface_where_it_knows_or_learns_nothing(layer):
    cosine, targets = batch([0.7, 0.7], [2, 2])
    with torch.no_grad():  # a teacher that nobody has counted
        assert torch.equal(FeatureCloud(4, SCALE, MARGIN)(cosine.clone(), targets), cosface(cosine, targets))
    assert torch.equal(layer(cosine.clone(), targets), cosface(cosine, targets))  # without statistics
    remember(layer, *FIRST)
    before = layer.sums.clone()
    with torch.no_grad():
        assert torch.equal(layer(cosine.clone(), targets), cosface(cosine, targets))
    assert torch.equal(layer.eval()(cosine.clone(), targets), cosface(cosine, targets))
    assert torch.equal(layer.sums, before) and not layer.state_dict()
    first, second = (layer.train()(cosine.clone(), targets) for _ in range(2))
    assert not torch.equal(first, second)


def test_gradients_are_those_of_the_formula_and_finite_at_the_centre(layer):
    remember(layer, *FIRST)
    step = layer.step.clone()
    cosine, targets = batch([0.7, 1.1], [2, 0])

    def loss(x):
        layer.step.copy_(step)
        return F.cross_entropy(layer(x, targets), targets)

    remembered = layer.sums.clone()
    leaf = cosine.clone().requires_grad_()
    loss(leaf.clone()).backward()
    for i, c in ((0, 2), (0, 0), (1, 0)):
        values = []
        for h in (1e-3, -1e-3):
            layer.sums.copy_(remembered)
            moved = cosine.clone()
            moved[i, c] += h
            values.append(loss(moved).item())
        assert leaf.grad[i, c].item() == pytest.approx((values[0] - values[1]) / 2e-3, rel=0.02, abs=2e-3)
    edge = torch.ones(1, 4).requires_grad_()
    layer(edge.clone(), torch.tensor([2])).sum().backward()
    assert torch.isfinite(edge.grad).all()


def test_half_precision_and_broken_numbers_leave_the_statistics_whole(layer):
    remember(layer, *FIRST)
    cosine, targets = batch([0.7, 0.7], [2, 3])
    assert layer(cosine.half(), targets).dtype == torch.float16
    before = layer.sums.clone()
    layer(torch.full((2, 4), float("nan")), targets)
    assert torch.equal(layer.sums, before) and layer.sums.dtype == torch.float64


def test_ranks_share_their_statistics_and_draw_for_themselves(layer, monkeypatch):
    """Each of two ranks brings half of the images; its all_reduce adds the other's sums."""
    halves = [(FIRST[0][rank::2], FIRST[1][rank::2]) for rank in (0, 1)]
    sums = []
    for half in halves:
        alone = FeatureCloud(4, SCALE, MARGIN)
        alone.set_class_counts(torch.tensor(COUNTS))
        remember(alone, *half)
        sums.append(alone.sums)
    remember(layer, *FIRST)
    drawn = []
    for rank in (0, 1):
        monkeypatch.setattr("benchmarks.rivals.feature_cloud.rank_and_world", lambda rank=rank: (rank, 2))
        monkeypatch.setattr(dist, "all_reduce", lambda new, rank=rank: new.add_(sums[1 - rank]))
        shared = FeatureCloud(4, SCALE, MARGIN)
        shared.set_class_counts(torch.tensor(COUNTS))
        remember(shared, *halves[rank])
        torch.testing.assert_close(shared.sums, layer.sums)
        drawn.append(shared._draw(torch.full((5,), 2)))
    assert not torch.equal(*drawn)


def test_a_config_names_it(make_trainer, steps):
    trainer = make_trainer(*LAYER, *COSFACE, "DATALOADER.SAMPLER_TRAIN", "NaiveIdentitySampler")
    losses = steps(trainer, 8)
    cloud = trainer.model.heads.cls_layer
    assert type(cloud) is FeatureCloud and (cloud.s, cloud.m) == (16, 0.2)
    # TINY has 4 people of 8 images, 20 of 2; the sampler draws all alike.
    assert cloud.is_head.sum() == 4
    assert (cloud.cloud_variances() > 0).any() and all(torch.isfinite(each["loss_cls"]) for each in losses)
    assert cloud.seed != 0 and not any("cls_layer" in key for key in trainer.model.state_dict())


def test_a_layer_that_cannot_know_its_tail_says_so(layer):
    with pytest.raises(ValueError, match="all classes of the training set have the same number of images"):
        layer.set_class_counts(torch.tensor([5, 5, 0, 5]))
    with pytest.raises(ValueError, match="does not know the class counts"):
        remember(FeatureCloud(4, SCALE, MARGIN), *FIRST)
