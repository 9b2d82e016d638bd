"""The samplers that draw identities: what never fills a batch is an error."""

from __future__ import annotations

import functools

from fastreid_today.changes import change, wrap


@change(
    "data/samplers/triplet_sampler.py",
    "no end and no message after `Starting training`, where an identity sampler never fills a batch",
)
def identity_samplers() -> str | None:
    """A batch that can never be filled is a ValueError when the sampler is made, with the numbers that do not fit."""
    for name, check in _CHECKS.items():
        wrap(f"data.samplers.triplet_sampler:{name}.__init__", functools.partial(_checked, name, check))
    return None


def _checked(name, check, init, self, data_source, mini_batch_size, num_instances, *arguments, **options):
    if mini_batch_size < 1 or num_instances < 1 or mini_batch_size < num_instances:
        identities = len({item[1] for item in data_source})
        wanted = "a NUM_INSTANCE of 1 or more" if num_instances < 1 else "a multiple of NUM_INSTANCE"
        raise ValueError(_no_batch(name, mini_batch_size, num_instances, identities, wanted))
    init(self, data_source, mini_batch_size, num_instances, *arguments, **options)
    if wanted := check(self):
        raise ValueError(_no_batch(name, mini_batch_size, num_instances, self.num_identities, wanted))


def _no_batch(name: str, mini_batch_size: int, num_instances: int, identities: int, wanted: str) -> str:
    return (
        f"{name} would never fill a batch of {mini_batch_size} images a rank (SOLVER.IMS_PER_BATCH) with "
        f"DATALOADER.NUM_INSTANCE {num_instances} images of each identity and {identities} identities in the training "
        f"set: it takes {wanted}. Change SOLVER.IMS_PER_BATCH or NUM_INSTANCE, or set DATALOADER.SAMPLER_TRAIN to "
        "TrainingSampler"
    )


def _naive(sampler) -> str:
    """What NaiveIdentitySampler lacks. It draws ``people`` identities a round until the rounds make a batch of all
    ranks, and an identity takes part as often as it has NUM_INSTANCE images, but once in any case."""
    people, instances, batch = sampler.num_pids_per_batch, sampler.num_instances, sampler.batch_size
    if batch % (people * instances):
        return "a multiple of NUM_INSTANCE"
    rounds = batch // (people * instances)
    turns = sum(min(max(len(images) // instances, 1), rounds) for images in sampler.pid_index.values())
    return f"{people * rounds} identities or more" if turns < people * rounds else ""


def _balanced(sampler) -> str:
    """What BalancedIdentitySampler lacks. It drops identities beyond a multiple of what the ranks' batches hold."""
    people, batch = sampler.num_pids_per_batch * sampler._world_size, sampler.batch_size
    if batch % sampler.num_instances:
        return "a multiple of NUM_INSTANCE"
    kept = sampler.num_identities - sampler.num_identities % people
    return f"{batch // sampler.num_instances} identities or more" if kept * sampler.num_instances < batch else ""


_CHECKS = {"NaiveIdentitySampler": _naive, "BalancedIdentitySampler": _balanced}
