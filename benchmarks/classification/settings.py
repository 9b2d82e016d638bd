"""The one YAML of settings: protocols, methods, and the named groups of cells that make the tables."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.cells import Retired, check_known, read_settings
from benchmarks.rivals import LOSSES
from mbj_plugin.settings import CLASSIFIERS
from mbj_plugin.tools.trainer.data import SAMPLERS

#: "amp" is bf16 up to the features, and fp32 behind them. Rows of "bf16" have bf16 logits, and run no more.
PRECISIONS = ("fp32", "amp")
#: Losses that bring a network of their own, see :mod:`benchmarks.rivals`; nothing else goes with them.
SYSTEMS = ("bbn", "iem")
AFTER = ("logit_adjustment", "tau_normalization", "nearest_class_mean")
AUGMENTS = ("autoaugment",)
DRAWS = ("one", "own")
#: Settings that came after the first rows: a row names them where they are set.
ADDED = ("augment", "mixup", "sampler")
#: Settings of a method that are gone, with the value that all rows of today's methods name.
GONE = {"ramp": 0, "prior_correction": False, "prototypes": "batch"}
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
    #: A point of the curves every so many epochs, on one of so many test images; the last is on all of them.
    curve_epochs: int = 1
    curve_stride: int = 1
    #: "autoaugment", with Cutout; and alpha of Mixup, 0 = none. See :mod:`.strong`.
    augment: str | None = None
    mixup: float = 0.0

    def __post_init__(self) -> None:
        if self.augment is not None:
            check_known("augment", self.augment, AUGMENTS)
        if not 0 <= self.mixup < float("inf"):
            raise ValueError(f"mixup must be a finite alpha >= 0, got {self.mixup}")
        object.__setattr__(self, "milestones", tuple(self.milestones))
        if not self.milestones or not 0 < self.milestones[0] < self.epochs:
            raise ValueError(f"milestones must name a first decay within the {self.epochs} epochs: {self.milestones}")
        for dataset in self.max_count or {}:
            check_known("data set", dataset, NUM_CLASSES)

    def check_goes_with(self, method: Method) -> None:
        """Raises ValueError for a method that cannot be trained so."""
        hard = {method.loss, method.classifier_loss or method.loss} - {"ce", "balanced_softmax"}
        if self.mixup and hard:
            raise ValueError(f"mixup makes soft labels, the loss {min(hard)} takes hard ones: take another")
        if self.augment and (method.loss == "bbn" or method.sampler):
            raise ValueError(f"augment makes one version of an image an epoch, {method.sampler or 'bbn'} draws more")

    @property
    def curve_points(self) -> list[int]:
        """Epochs, counted from 1, after which the model is tested."""
        return [e for e in range(1, self.epochs + 1) if e % self.curve_epochs == 0 or e == self.epochs]


@dataclasses.dataclass(frozen=True)
class Method:
    """What a cell is trained with: a batch loss, and a memory beside it or none.

    A classifier of its own that only its own losses train leaves the features as they are: such a method is a passenger
    of its batch loss's run (:mod:`.passenger`), as is what happens after the training.
    """

    loss: str = "ce"
    memory: str | None = None
    #: "own" or "shared", see :class:`mbj_plugin.timm.MBJLoss`.
    classifier: str = "own"
    #: Batch loss of the classifier of its own; None = ``loss``.
    classifier_loss: str | None = None
    #: What takes the finished classifier's place, see :mod:`mbj_plugin.logit_adjustment`.
    after: str | None = None
    tau: float = 1.0
    eta: float | None = None
    beta: float = 1.5
    norm: str = "sum"
    size: int | None = None
    #: First epoch of the memory loss (and of LDAM's re-weighting): a number, or "decay" for the first decay.
    start: int | str = "decay"
    #: Rows of the memory that are drawn for each step; 0 = all.
    sample: int = 0
    #: That of train_timm: "class-balanced" or "square-root"; None = each image once an epoch.
    sampler: str | None = None

    def __post_init__(self) -> None:
        check_known("loss", self.loss, (*LOSSES, *SYSTEMS))
        check_known("classifier", self.classifier, CLASSIFIERS)
        if self.classifier_loss is not None:
            check_known("loss", self.classifier_loss, LOSSES)
        if self.after is not None:
            check_known("after", self.after, AFTER)
        if self.sampler is not None:
            check_known("sampler", self.sampler, SAMPLERS)
        if self.loss in SYSTEMS:
            for field in dataclasses.fields(self):
                if field.name != "loss" and getattr(self, field.name) != field.default:
                    raise ValueError(f"{field.name} does not go with the loss {self.loss}: leave it out")
        if self.start != "decay" and not (isinstance(self.start, int) and self.start >= 0):
            raise ValueError(f"start must be 'decay' or a number of epochs >= 0, got {self.start!r}")

    @property
    def is_passenger(self) -> bool:
        """Whether the features are those of the batch loss alone."""
        remembers = self.memory == "feature" and self.classifier == "own"
        return self.after is not None or remembers or (self.memory is None and self.classifier_loss is not None)

    def memory_settings(self, protocol: Protocol, steps_per_epoch: int) -> dict[str, Any]:
        """Arguments of the memory, as MBJLoss and FeatureMemoryLoss take them; what is not set is left to them."""
        settings = {
            "size": self.size,
            "eta": self.eta,
            "beta": self.beta,
            "norm": self.norm,
            "start": self.start_epoch(protocol) * steps_per_epoch,
            "sample": self.sample,
        }
        return {name: value for name, value in settings.items() if value is not None}

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
    precision: str = "fp32"
    #: Which images of a class are the training set's; 0 is the order of the file.
    draw: int = 0

    def __str__(self) -> str:
        name = f"{self.dataset} rho {self.imbalance_ratio} {self.protocol} {self.method} seed {self.seed}"
        name += f" draw {self.draw}" if self.draw else ""
        return name if self.precision == "fp32" else f"{name} {self.precision}"

    @property
    def file_name(self) -> str:
        return "-".join(str(value) for value in dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Settings:
    """The whole YAML."""

    protocols: dict[str, Protocol]
    methods: dict[str, Method]
    groups: dict[str, dict[str, Any]]
    retired: dict[str, Retired] = dataclasses.field(default_factory=dict)

    def cells(
        self,
        datasets: Iterable[str],
        ratios: Iterable[int],
        protocol: str,
        methods: Iterable[str],
        seeds: Iterable[int],
        precision: str = "fp32",
        draws: str = "one",
    ) -> list[Cell]:
        """All combinations, seed by seed, so that an interrupted run holds pairs. With ``draws`` "own" each seed draws
        its own images, and seed 0 those of all seeds of "one".

        Raises:
            ValueError: for a name that the settings do not have, naming the nearest.
        """
        datasets, methods = list(datasets), list(methods)
        check_known("protocol", protocol, self.protocols)
        check_known("precision", precision, PRECISIONS)
        check_known("draws", draws, DRAWS)
        for name in datasets:
            check_known("data set", name, NUM_CLASSES)
        for name in methods:
            check_known("method", name, self.methods)
            try:
                self.protocols[protocol].check_goes_with(self.methods[name])
            except ValueError as error:
                raise ValueError(f"{name} under the protocol {protocol}: {error}") from None
        product = itertools.product(seeds, datasets, ratios, methods)
        return [
            Cell(dataset, ratio, protocol, method, seed, precision, seed if draws == "own" else 0)
            for seed, dataset, ratio, method in product
        ]

    def group(self, name: str, precision: str | None = None) -> list[Cell]:
        """The cells of a named group, in its own precision or another.

        Raises:
            ValueError: for an unknown group.
        """
        check_known("group", name, self.groups)
        return self.cells(**{**self.groups[name], **({"precision": precision} if precision else {})})

    def of(self, cell: Cell) -> dict[str, Any]:
        """Protocol and method of a cell, as plain types: the ``settings`` of its row."""
        protocol, method = self.protocols[cell.protocol], self.methods[cell.method]
        parts = {
            "protocol": dataclasses.asdict(protocol) | {"milestones": list(protocol.milestones)},
            "method": GONE | dataclasses.asdict(method),
        }
        return {
            part: {name: value for name, value in values.items() if value or name not in ADDED}
            for part, values in parts.items()
        }


def load_settings(path: str | Path | None = None) -> Settings:
    """Settings from a YAML file; by default ``benchmarks/classification/settings.yaml``.

    Raises:
        ValueError: for a file that cannot be read, an unknown key, a missing one, or a value out of range.
    """
    source = Path(path) if path else Path(__file__).with_name("settings.yaml")
    content = read_settings(source, {"protocols", "methods", "groups"})
    settings = Settings(
        {name: _build(Protocol, name, values) for name, values in content["protocols"].items()},
        {name: _build(Method, name, values) for name, values in content["methods"].items()},
        content["groups"],
        {name: _build(Retired, name, values) for name, values in content.get("retired", {}).items()},
    )
    for name, group in settings.groups.items():
        if set(group) - {"precision", "draws"} != {"datasets", "ratios", "protocol", "methods", "seeds"}:
            raise ValueError(
                f"group {name!r} must hold datasets, ratios, protocol, methods and seeds "
                f"(and may hold precision and draws): {sorted(group)}"
            )
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
