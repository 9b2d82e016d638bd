"""The pull to one's own prototypes alone, against slow formulas in float64 and inside fast-reid's trainer."""

import pytest
import torch

from benchmarks.retrieval.variants import PositivesLoss

COUNTS = [9, 2, 5, 2]
SCALE, MARGIN, ETA = 4.0, 0.3, 2.0


def eq4(features, labels, rows, row_labels):
    """Eq. 4 in float64, pair by pair; no gradient passes the negatives."""
    losses = []
    for x, label in zip(features.double(), labels, strict=True):
        positive = negative = 0.0
        for m, other in zip(rows.double(), row_labels, strict=True):
            cosine = x @ m / (x.norm() * m.norm())
            if other == label:
                positive = positive + (-SCALE * cosine).exp()
            else:
                negative = negative + (SCALE * (cosine.detach() + MARGIN)).exp()
        losses.append((1 + positive * negative).log())
    return ETA * sum(losses) / len(losses)


def test_against_the_formula():
    torch.manual_seed(0)
    loss = PositivesLoss(COUNTS, 6, size=7, eta=ETA, beta=0, norm="max", scale=SCALE, margin=MARGIN, num_classes=4)
    loss.bank.enqueue(torch.randn(7, 6), torch.tensor([0, 1, 1, 3, 2, 0, 2]))
    features, labels = torch.randn(3, 6, requires_grad=True), torch.tensor([0, 1, 2])
    value = eq4(features, labels, loss.bank.rows.clone(), loss.bank.labels.clone())
    (expected,) = torch.autograd.grad(value, features)
    got = loss(features, labels, torch.eye(6)[:4])
    assert got.item() == pytest.approx(value.item(), rel=1e-5)
    torch.testing.assert_close(torch.autograd.grad(got, features)[0], expected, rtol=1e-4, atol=1e-5)


def test_the_head_trains(make_trainer, steps):
    given = {"NORM": "max", "START": 2, "ETA": 3, "MARGIN": 0.1}
    options = [part for key, value in given.items() for part in (f"MODEL.MBJ.{key}", value)]
    trainer = make_trainer("MODEL.HEADS.NAME", "MBJPositivesHead", *options)
    memory = trainer.model.heads.memories["prototype"]
    assert type(memory) is PositivesLoss
    assert (memory.eta, memory.norm, memory.margin, memory.start) == (3, "max", 0.1, 2)
    steps(trainer, 6)
    assert memory.bank.filled > 0 and (memory.bank.rows[0] != 0).any()
