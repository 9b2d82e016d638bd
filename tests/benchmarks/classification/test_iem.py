"""IEM* against its formulas, slot by slot in float64."""

import math

import pytest
import torch
from drawn_images import drawn, plain_batch, plain_steps
from torch import nn

from benchmarks.classification.recipe import build_model
from benchmarks.classification.settings import Method, Protocol
from benchmarks.classification.training import CellRun
from benchmarks.rivals.iem import EpisodicMemory, read_memory, write_memory

CLASSES, DIM = 3, 4


def unit(row):
    return [v / math.sqrt(sum(w * w for w in row)) for v in row]


def slow_read(features, bank, scale):
    """Votes from one list of (confidence, key) for each category."""
    votes = []
    for row in features:
        cosines = [
            [scale * sum(a * b for a, b in zip(unit(row), key, strict=True)) for _, key in rows] for rows in bank
        ]
        weights = [[math.exp(c) for c in of_class] for of_class in cosines]
        reads = [
            sum(w * c for w, c in zip(*pair, strict=True)) / (sum(pair[0]) or 1)
            for pair in zip(weights, cosines, strict=True)
        ]
        votes.append(reads)
    return votes


def slow_write(bank, features, labels, probs, slots, fading):
    """Category by category: fade once an image, add, keep the best."""
    after = []
    for category, rows in enumerate(bank):
        own = [i for i, label in enumerate(labels) if label == category]
        rows = [(confidence * fading ** len(own), key) for confidence, key in rows]
        rows += [(probs[i], unit(features[i])) for i in own if all(math.isfinite(v) for v in features[i])]
        after.append(sorted(rows, reverse=True)[:slots])
    return after


@pytest.fixture
def batches():
    """Three batches; class 2 comes only in the last, and there is a row that is not finite."""
    g = torch.Generator().manual_seed(0)
    labels = [[0, 1, 0, 0, 0], [0, 1, 1, 0, 0], [2, 0, 1, 2, 2]]
    features = torch.randn(3, 5, DIM, generator=g, dtype=torch.float64)
    features[1, 2, 0] = float("nan")
    return [
        (f, torch.tensor(y), torch.rand(5, generator=g, dtype=torch.float64))
        for f, y in zip(features, labels, strict=True)
    ]


def test_read_and_write_are_those_of_a_plain_loop(batches):
    keys, confidence = torch.zeros(CLASSES, 2, DIM).double(), torch.zeros(CLASSES, 2).double()
    bank = [[] for _ in range(CLASSES)]
    for features, labels, probs in batches:
        keys, confidence = write_memory(keys, confidence, features, labels, probs, fading=0.7)
        bank = slow_write(bank, features.tolist(), labels.tolist(), probs.tolist(), 2, 0.7)
        for category, rows in enumerate(bank):
            assert (confidence[category] > 0).sum() == len(rows)
            assert confidence[category, : len(rows)].tolist() == pytest.approx([c for c, _ in rows])
            for slot, (_, key) in enumerate(rows):
                assert keys[category, slot].tolist() == pytest.approx(key)
        queries = batches[0][0]
        votes = read_memory(queries, keys, confidence, scale=5.0)
        for vote, slow in zip(votes.tolist(), slow_read(queries.tolist(), bank, 5.0), strict=True):
            assert vote == pytest.approx(slow)
    assert [len(rows) for rows in bank] == [2, 2, 2]


def test_a_category_that_is_not_in_the_batch_stays_as_it_is(batches):
    keys, confidence = write_memory(
        torch.zeros(CLASSES, 2, DIM).double(), torch.zeros(CLASSES, 2).double(), *batches[2]
    )
    after = write_memory(keys, confidence, batches[0][0], torch.zeros(5).long(), batches[0][2])
    assert torch.equal(after[0][1:], keys[1:]) and torch.equal(after[1][1:], confidence[1:])


def test_the_query_learns_and_what_is_remembered_does_not():
    model = EpisodicMemory(build_model(Protocol(8, 4, 2, (1,), 0), Method(), 10, 0))
    images = torch.randn(4, 3, 8, 8)
    model(images)
    model.remember(torch.tensor([0, 1, 2, 2]), torch.full((4,), 0.5))
    nn.init.zeros_(model.model.fc.weight)  # what is left of the gradient comes from the memory
    model(images)[:, 2].sum().backward()
    assert model.model.conv1.weight.grad.abs().max() > 0
    assert not model.keys.requires_grad


def test_a_cell_is_a_plain_loop_with_a_memory():
    images, protocol = drawn(), Protocol(8, 4, 3, (2,), 1, batch_size=8, padding=2)
    cell = CellRun(protocol, Method(loss="iem"), images, 0)
    assert cell.train()
    model = build_model(protocol, Method(), 10, 0)
    keys, confidence = torch.zeros(10, 20, 16), torch.zeros(10, 20)
    for _, _, draw in plain_steps(images, protocol, model):
        x, y = plain_batch(images, draw, 2)
        features = model.forward_head(model.forward_features(x), pre_logits=True)
        # In the cell's order: gradients of the features are then summed in the same one, and nothing drifts apart.
        votes = read_memory(features, keys, confidence)
        logits = model.fc(features) + votes
        nn.functional.cross_entropy(logits, y).backward()
        probs = logits.detach().softmax(1)[torch.arange(8), y]
        keys, confidence = write_memory(keys, confidence, features.detach(), y, probs)
    for key, value in {**model.state_dict(prefix="model."), "keys": keys, "confidence": confidence}.items():
        torch.testing.assert_close(cell.model.state_dict()[key], value, msg=key)
    assert (confidence > 0).all(1).any()
