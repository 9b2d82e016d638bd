"""Other readings of MBJ-W's loss, against slow formulas in float64 and inside fast-reid's trainer."""

import math

import pytest
import torch

pytest.importorskip("fastreid.config", reason="fast-reid is not installed")

from benchmarks.retrieval import variants
from mbj_plugin.losses import PrototypeMemoryLoss

COUNTS = [9, 2, 5, 2]
SCALE, MARGIN, ETA = 4.0, 0.3, 2.0


def filled(kind, **options):
    """A loss of 4 identities that remembers seven rows, and a batch of three features with a gradient."""
    torch.manual_seed(0)
    loss = kind(COUNTS, 6, size=7, eta=ETA, beta=0, norm="max", scale=SCALE, margin=MARGIN, num_classes=4, **options)
    loss.bank.enqueue(torch.randn(7, 6), torch.tensor([0, 1, 1, 3, 2, 0, 2]))
    return loss, torch.randn(3, 6, requires_grad=True), torch.tensor([0, 1, 2])


def eq4(features, labels, rows, row_labels, *, negatives=lambda label: True, detached=()):
    """Eq. 4 in float64, pair by pair.

    Args:
        negatives: whether rows of an identity are negatives.
        detached: "positive" or "negative", the similarities that no gradient passes.
    """
    losses = []
    for x, label in zip(features.double(), labels, strict=True):
        positive = negative = 0.0
        for m, other in zip(rows.double(), row_labels, strict=True):
            cosine = x @ m / (x.norm() * m.norm())
            if other == label:
                cosine = cosine.detach() if "positive" in detached else cosine
                positive = positive + (-SCALE * cosine).exp()
            elif negatives(int(other)):
                cosine = cosine.detach() if "negative" in detached else cosine
                negative = negative + (SCALE * (cosine + MARGIN)).exp()
        losses.append((1 + positive * negative).log())
    return ETA * sum(losses) / len(losses)


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        (variants.PositivesLoss, {"detached": ("negative",)}),
        (variants.NegativesLoss, {"detached": ("positive",)}),
        (variants.TailNegativesLoss, {"negatives": lambda label: COUNTS[label] == 2}),
    ],
)
def test_pairs_against_the_formula(kind, how):
    loss, features, labels = filled(kind)
    rows, row_labels = loss.bank.rows.clone(), loss.bank.labels.clone()
    value = eq4(features, labels, rows, row_labels, **how)
    (expected,) = torch.autograd.grad(value, features)
    got = loss(features, labels, torch.eye(6)[:4])
    assert got.item() == pytest.approx(value.item(), rel=1e-5)
    torch.testing.assert_close(torch.autograd.grad(got, features)[0], expected.float(), rtol=1e-4, atol=1e-6)
    # The whole of Eq. 4 is another loss, or has another gradient.
    whole = eq4(features, labels, rows, row_labels)
    assert not torch.allclose(torch.autograd.grad(whole, features)[0].float(), expected.float(), rtol=1e-2)


def test_a_projection_of_its_own():
    plain, features, labels = filled(PrototypeMemoryLoss)
    loss, *_ = filled(variants.OwnProjectionLoss)
    weight = torch.eye(6)[:4]
    state = torch.get_rng_state()
    variants.OwnProjectionLoss(COUNTS, 6, num_classes=4)
    assert torch.equal(torch.get_rng_state(), state)  # a pair draws the same batches
    first = loss(features, labels, weight)
    torch.testing.assert_close(first, plain(features, labels, weight))
    assert dict(loss.named_parameters()).keys() == {"projection"}
    (gradient,) = torch.autograd.grad(first, loss.projection)
    with torch.no_grad():
        loss.projection -= 0.1 * gradient
    rows, row_labels = loss.bank.rows.clone(), loss.bank.labels.clone()
    expected = eq4(features.double() @ loss.projection.double().T, labels, rows, row_labels)
    assert loss(features, labels, weight).item() == pytest.approx(expected.item(), rel=1e-5)


def test_before_the_start_nothing_reaches_the_projection():
    loss, features, labels = filled(variants.OwnProjectionLoss, start=2)
    (loss(features, labels, torch.eye(6)[:4]) + features.sum()).backward()
    assert loss.projection.grad is None  # weight decay would be all that moves it


def test_means_of_identities_over_an_epoch():
    torch.manual_seed(0)
    loss = variants.IdentityMeansLoss(COUNTS, 6, size=20, eta=ETA, beta=0, norm="max", num_classes=4)
    loss.epoch_steps = 2
    batches = [(torch.randn(3, 6), torch.tensor(labels)) for labels in ([0, 1, 1], [0, 1, 0], [2, 2, 0], [2, 0, 0])]
    remembered = []
    for features, labels in [*batches, batches[0]]:
        loss(features, labels, torch.full((4, 6), math.inf))
        remembered.append(sorted(loss.bank.labels[loss.bank.labels >= 0].tolist()))
    # Nothing in the first epoch; in the second those of the first; 1, not seen in the second, from the first.
    assert remembered == [[], [], [0, 1], [0, 0, 1, 1], [0, 0, 0, 1, 1, 1, 2]]

    def mean(batches, label):
        rows = [row / row.norm() for features, labels in batches for row in features[labels == label]]
        total = torch.stack(rows).double().sum(0)
        return (total / total.norm()).float()

    first, second = batches[:2], batches[2:]
    for label, epochs in ((0, (first, first, second)), (1, (first, first, first)), (2, (second,))):
        rows = loss.bank.rows[loss.bank.labels == label]
        torch.testing.assert_close(rows, torch.stack([mean(epoch, label) for epoch in epochs]))


@pytest.mark.parametrize("name", ["OwnProjection", "IdentityMeans", "Positives", "Negatives", "TailNegatives"])
def test_heads_train(make_trainer, steps, name):
    given = {"NORM": "max", "START": 2, "ETA": 3, "MARGIN": 0.1}
    options = [part for key, value in given.items() for part in (f"MODEL.MBJ.{key}", value)]
    trainer = make_trainer("MODEL.HEADS.NAME", f"MBJ{name}Head", *options)
    memory = trainer.model.heads.memories["prototype"]
    assert type(memory) is getattr(variants, f"{name}Loss")
    assert (memory.eta, memory.norm, memory.margin, memory.start) == (3, "max", 0.1, 2)
    before = {n: p.clone() for n, p in memory.named_parameters()}
    steps(trainer, 2 * trainer.iters_per_epoch)
    assert memory.bank.filled > 0 and (memory.bank.rows[0] != 0).any()
    for parameter, value in memory.named_parameters():
        assert not torch.equal(value, before[parameter])  # the optimizer has it
