"""The samplers that draw identities: what never fills a batch is an error."""

from __future__ import annotations

import functools
import re

import numpy as np

from fastreid_today.changes import change, replaces, wrap


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
    if name == "SetReWeightSampler":
        weights = arguments[0] if arguments else options["set_weight"]
        _check_set_weight(data_source, mini_batch_size, num_instances, weights)
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


def _check_set_weight(items, mini_batch_size: int, num_instances: int, weights: list[int]) -> None:
    from fastreid.utils import comm

    people: dict[object, set] = {}
    for _, identity, camera, *_ in items:
        people.setdefault(camera, set()).add(identity)
    sizes = [len(people[camera]) for camera in _sorted(people)]
    fits = len(weights) == len(sizes) and all(0 <= weight <= size for weight, size in zip(weights, sizes, strict=True))
    if not fits or not sum(weights):
        had = ", ".join(f"{camera} with {size}" for camera, size in zip(_sorted(people), sizes, strict=True))
        raise ValueError(
            "DATALOADER.SET_WEIGHT must hold, for each camera, how many of its people one round draws, 0 to all of "
            f"them and not 0 for all cameras, got {list(weights)}: the training set has {had}"
        )
    drawn, batch = sum(weights) * num_instances, mini_batch_size * comm.get_world_size()
    if batch % drawn or batch == drawn:
        raise ValueError(
            f"SetReWeightSampler would never fill a batch of {batch} images (SOLVER.IMS_PER_BATCH): it must be two or "
            f"more times what one round draws, {drawn}, that is DATALOADER.NUM_INSTANCE {num_instances} times the sum "
            f"of DATALOADER.SET_WEIGHT {sum(weights)}"
        )


_CHECKS = {"NaiveIdentitySampler": _naive, "BalancedIdentitySampler": _balanced, "SetReWeightSampler": lambda _: ""}


@replaces(
    "data.samplers.triplet_sampler:SetReWeightSampler._infinite_indices",
    "SetReWeightSampler: `'a' cannot be empty` (it numbers cameras that have names), or a batch that never comes",
)
def set_reweight_sampler(_, self):
    """It takes cameras by their names, sorted with numbers as numbers, and draws until the batch is full."""
    from fastreid.data.samplers.triplet_sampler import reorder_index

    np.random.seed(self._seed)
    cameras = _sorted(self.cam_pid)
    while True:
        batch = []
        # Its check of the batch size wants a multiple, two or more, of what one round draws.
        while len(batch) < self.batch_size:
            for camera, weight in zip(cameras, self.set_weight, strict=True):
                people = np.random.choice(self.cam_pid[camera], size=weight, replace=False, p=self.set_pid_prob[camera])
                for person in people:
                    images = self.pid_index[person]
                    again = len(images) <= self.num_instances
                    batch += np.random.choice(images, size=self.num_instances, replace=again).tolist()
        np.random.shuffle(batch)
        yield from reorder_index(batch, self._world_size)


def _sorted(cameras) -> list:
    def key(name: object) -> list[str | int]:
        return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(name))]

    return sorted(cameras, key=key)
