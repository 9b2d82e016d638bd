"""Identity samplers: what never fills a batch is an error before training, and what fills one is left alone."""

import itertools

import pytest
from fastreid.data.samplers import triplet_sampler
from fastreid.utils import comm

KINDS = ("NaiveIdentitySampler", "BalancedIdentitySampler")


def people(counts):
    """Items of as many images of each identity as ``counts`` says, from two cameras in turn."""
    return [(f"{pid}-{i}", pid, f"cam_{i % 2}") for pid, count in enumerate(counts) for i in range(count)]


@pytest.fixture
def ranks(monkeypatch):
    """ranks(n): samplers are made on the first of n ranks."""
    return lambda world: monkeypatch.setattr(comm, "get_world_size", lambda: world)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("batch", "instances", "counts", "world", "wanted"),
    [
        (2, 4, [8] * 9, 1, "a multiple of NUM_INSTANCE"),
        (0, 4, [8] * 9, 2, "a multiple of NUM_INSTANCE"),
        (8, 0, [8] * 9, 1, "a NUM_INSTANCE of 1 or more"),
        (10, 4, [8] * 9, 1, "a multiple of NUM_INSTANCE"),
        (8, 4, [8], 1, "2 identities or more"),
        (16, 4, [8] * 3, 1, "4 identities or more"),
        (8, 4, [4] * 3, 2, "4 identities or more"),
    ],
)
def test_a_batch_that_never_comes(kind, batch, instances, counts, world, wanted, ranks):
    ranks(world)
    numbers = rf"{batch} images a rank .*NUM_INSTANCE {instances} .* {len(counts)} identities in .*{wanted}\."
    with pytest.raises(ValueError, match=f"{kind} would never fill a batch of {numbers}"):
        getattr(triplet_sampler, kind)(people(counts), batch, instances, seed=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("batch", "instances", "counts", "world"),
    [
        (8, 4, [8] * 9, 1),
        (8, 4, [1, 1], 1),
        (3, 1, [5, 1, 1], 1),
        (8, 4, [4] * 4, 2),
        (8, 2, [1] * 11, 2),
    ],
)
def test_a_batch_that_comes(kind, batch, instances, counts, world, ranks):
    ranks(world)
    sampler = getattr(triplet_sampler, kind)(people(counts), batch, instances, seed=0)
    assert len(list(itertools.islice(sampler, 3 * batch))) == 3 * batch


def test_many_images_make_up_for_few_identities(ranks):
    """Two ranks: NaiveIdentitySampler fills a batch in two rounds, which may draw the same people."""
    ranks(2)
    sampler = triplet_sampler.NaiveIdentitySampler(people([8] * 3), 8, 4, seed=0)
    assert len(list(itertools.islice(sampler, 24))) == 24


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_said_before_training(make_trainer, kind):
    with pytest.raises(ValueError, match=f"{kind} .* 8 images a rank .*NUM_INSTANCE 3 .* 24 identities"):
        make_trainer(
            "MODEL.HEADS.NAME", "EmbeddingHead", "DATALOADER.SAMPLER_TRAIN", kind, "DATALOADER.NUM_INSTANCE", 3
        )
