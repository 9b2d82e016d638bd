"""The one YAML of settings: protocols, methods, and the named groups of cells that make the tables."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from mbj_plugin.batch_losses import LOSSES
from mbj_plugin.names import check_known

NUM_CLASSES = {"cifar10_lt": 10, "cifar100_lt": 100}


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a cell is trained and tested, whatever its method. Epochs count from 0."""

    depth: int
    width: int
    epochs: int
    milestones: tuple[int, ...]
    warmup_epochs: int
    batch_size: int = 32
    lr: float = 0.1
    decay_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 2e-4
    padding: int = 4
    #: Blocks of so many pixels a side are averaged into one.
    shrink: int = 1
    #: n_max, images of the largest class, by data set; None = as many as the images allow.
    max_count: dict[str, int] | None = None
    #: A point of the curves every so many epochs, on every so-manieth test image; the last is on all of them.
    curve_epochs: int = 1
    curve_stride: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        if not self.milestones or not 0 < self.milestones[0] < self.epochs:
            raise ValueError(f"milestones must name a first decay within the {self.epochs} epochs: {self.milestones}")
        for dataset in self.max_count or {}:
            check_known("data set", dataset, NUM_CLASSES)


@dataclasses.dataclass(frozen=True)
class Method:
    """What a cell is trained with: a batch loss, and a memory beside it or none."""

    loss: str = "ce"
    memory: str | None = None
    eta: float | None = None
    beta: float = 1.5
    norm: str = "sum"
    size: int | None = None
    #: First epoch of the memory loss (and of LDAM's re-weighting): a number, or "decay" for the first decay.
    start: int | str = "decay"
    #: Epochs over which eta rises.
    ramp: int = 0
    prior_correction: bool = False

    def __post_init__(self) -> None:
        check_known("loss", self.loss, LOSSES)
        if self.start != "decay" and not (isinstance(self.start, int) and self.start >= 0):
            raise ValueError(f"start must be 'decay' or a number of epochs >= 0, got {self.start!r}")

    def start_epoch(self, protocol: Protocol) -> int:
        return protocol.milestones[0] if self.start == "decay" else int(self.start)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of the tables, by the names that its row carries."""

    dataset: str
    imbalance_ratio: int
    protocol: str
    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.dataset} rho {self.imbalance_ratio} {self.protocol} {self.method} seed {self.seed}"

    @property
    def file_name(self) -> str:
        return "-".join(str(value) for value in dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Settings:
    """The whole YAML."""

    protocols: dict[str, Protocol]
    methods: dict[str, Method]
    groups: dict[str, dict[str, Any]]

    def cells(
        self,
        datasets: Iterable[str],
        ratios: Iterable[int],
        protocol: str,
        methods: Iterable[str],
        seeds: Iterable[int],
    ) -> list[Cell]:
        """All combinations, seed by seed, so that an interrupted run holds pairs.

        Raises:
            ValueError: for a name that the settings do not have, naming the nearest.
        """
        datasets, methods = list(datasets), list(methods)
        check_known("protocol", protocol, self.protocols)
        for name in datasets:
            check_known("data set", name, NUM_CLASSES)
        for name in methods:
            check_known("method", name, self.methods)
        product = itertools.product(seeds, datasets, ratios, methods)
        return [Cell(dataset, ratio, protocol, method, seed) for seed, dataset, ratio, method in product]

    def group(self, name: str) -> list[Cell]:
        """The cells of a named group.

        Raises:
            ValueError: for an unknown group.
        """
        check_known("group", name, self.groups)
        group = self.groups[name]
        return self.cells(group["datasets"], group["ratios"], group["protocol"], group["methods"], group["seeds"])

    def of(self, cell: Cell) -> dict[str, Any]:
        """Protocol and method of a cell, as plain types: the ``settings`` of its row."""
        protocol, method = self.protocols[cell.protocol], self.methods[cell.method]
        resolved = dataclasses.asdict(protocol) | {"milestones": list(protocol.milestones)}
        return {"protocol": resolved, "method": dataclasses.asdict(method)}


def load_settings(path: str | Path | None = None) -> Settings:
    """Settings from a YAML file; by default ``benchmarks/classification/settings.yaml``.

    Raises:
        ValueError: for a file that cannot be read, an unknown key, a missing one, or a value out of range.
    """
    source = Path(path) if path else Path(__file__).with_name("settings.yaml")
    try:
        content = yaml.safe_load(source.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read the settings {source}: {error}") from error
    if not isinstance(content, dict) or set(content) != {"protocols", "methods", "groups"}:
        raise ValueError(f"the settings {source} must hold protocols, methods and groups, and nothing else")
    settings = Settings(
        {name: _build(Protocol, name, values) for name, values in content["protocols"].items()},
        {name: _build(Method, name, values) for name, values in content["methods"].items()},
        content["groups"],
    )
    for name, group in settings.groups.items():
        if set(group) != {"datasets", "ratios", "protocol", "methods", "seeds"}:
            raise ValueError(f"group {name!r} must hold datasets, ratios, protocol, methods and seeds: {sorted(group)}")
        settings.group(name)
    return settings


def _build(kind: Any, name: str, values: dict[str, Any] | None) -> Any:
    known = {field.name for field in dataclasses.fields(kind)}
    for key in values or {}:
        check_known(f"setting of {name!r}", key, known)
    try:
        return kind(**(values or {}))
    except TypeError as error:
        raise ValueError(f"{kind.__name__.lower()} {name!r}: {error}") from error
