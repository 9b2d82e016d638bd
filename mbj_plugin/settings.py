"""The settings of MBJ: each one once, with its range, its default and what it does; and the memories made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mbj_plugin.batch_losses import LOSSES
from mbj_plugin.checks import RANGES, Counts
from mbj_plugin.functional import NORMS
from mbj_plugin.losses import FeatureMemoryLoss, PrototypeMemoryLoss
from mbj_plugin.memory import MemoryBank
from mbj_plugin.start import WANTED, Start, as_start

MEMORIES = ("feature", "prototype", "both")
CLASSIFIERS = ("own", "shared")
#: What is None has its own default for each memory, as in the paper.
OF_EACH = {"feature": {"eta": 15.0, "size": 500}, "prototype": {"eta": 1 / 7, "size": 3500}}


@dataclass(frozen=True)
class Rule:
    """What a setting may be.

    Args:
        kind: type of its values.
        wanted: its values, in words.
        read: gives the value in its own type, None where it is none.
        help: what it does, in one line.
        optional: None is a value too.
        choices: all values, where they are few.
    """

    kind: type
    wanted: str
    read: Callable[[Any], Any]
    help: str
    optional: bool
    choices: tuple[str, ...] = ()


def _setting(default: Any, kind: type, wanted: str, read: Callable[[Any], Any], help: str, choices: Any = ()) -> Any:
    rule = Rule(kind, wanted, read, help, default is None, choices)
    return dataclasses.field(default=default, metadata={"rule": rule})


def _in_range(name: str, default: float | None, help: str) -> Any:
    given = RANGES[name]
    return _setting(default, int if given.whole else float, given.wanted, given.read, help)


def _one_of(default: str | None, choices: tuple[str, ...], help: str) -> Any:
    wanted = f"one of {', '.join(choices)}"
    return _setting(default, str, wanted, lambda value: value if value in choices else None, help, choices)


@dataclass(frozen=True)
class MBJSettings:
    """What a user can set; ``MBJSettings.preset(task, name)`` gives the values that go together.

    Raises:
        ValueError: for a value out of range, or of a memory that is not in use, naming it.
    """

    memory: str = _one_of(
        "feature",
        MEMORIES,
        "what is stored: past features (MBJ-F, trains the classifier), prototypes, which are past classifier weights "
        "(MBJ-W, trains the embedding), or both (MBJ-WF)",
    )
    classifier: str = _one_of(
        "own",
        CLASSIFIERS,
        "which classifier the memory of features trains: 'own', a second one, so that the features are the same as "
        "without MBJ; or 'shared', the one that also trains the features; 'own' had a lower error",
    )
    classifier_loss: str | None = _one_of(
        None,
        LOSSES,
        "batch loss of the second classifier (default: the batch loss of the features)",
    )
    eta: float | None = _in_range(
        "eta",
        None,
        "weight of the memory's loss (Eq. 2): a higher value lowers the tail error and raises the head error, and 0 "
        "turns the loss off (default: 15 for features and 1/7 for prototypes, as in the paper; in fast-reid 3)",
    )
    size: int | None = _in_range(
        "size",
        None,
        "number of entries in each memory: a larger memory holds older entries, and more of each tail class (default: "
        "500 features, 3500 prototypes; in fast-reid 3500)",
    )
    sample: int = _in_range(
        "sample",
        0,
        "for a large memory of features: how many entries, chosen at random, each step uses; the loss is the same on "
        "average and takes less time; 0 uses all",
    )
    beta: float = _in_range(
        "beta",
        1.5,
        "strength of the re-balancing (Eq. 1 and 5): the entries of a class with N images are in proportion to "
        "N^(1-beta), so with 1 all classes have equally many, and above 1 the tail has most",
    )
    norm: str = _one_of(
        "max",
        NORMS,
        "'max' divides the probabilities of Eq. 1 and 5 by the largest one, so everything of the rarest class is "
        "stored; 'sum' is the paper's own, which stores far less, so the entries are older",
    )
    start: Start = _setting(  # noqa: RUF009
        "auto",
        str,
        WANTED.format(unit="epochs or iterations"),
        as_start,
        "when the memory's loss starts: 'auto' (the first decay of the learning rate), a fraction of the run below 1, "
        "or a number of epochs (timm) or iterations (fast-reid); if it starts too early, the error rises",
    )
    momentum: float = _in_range(
        "momentum",
        0.0,
        "store a moving average of the prototypes, with this momentum (MBJ*): this removes the jitter, and in the "
        "paper it lowers the mAP",
    )
    scale: float = _in_range("scale", 16.0, "alpha of Eq. 4, the loss on the memory of prototypes")
    margin: float = _in_range("margin", 0.2, "delta of Eq. 4")
    seed: int | None = _in_range("seed", None, "seed of the memories' random choices (default: the run's)")
    class_counts: str | None = _setting(
        None,
        str,
        "the name of a file",
        lambda value: value if isinstance(value, str) else None,
        "JSON list of the number of training images of each class, for data sets that cannot be counted",
    )

    def __post_init__(self) -> None:
        for name in RULES:
            object.__setattr__(self, name, checked(name, getattr(self, name)))
        if self.classifier_loss is not None and (self.classifier == "shared" or self.memory == "prototype"):
            raise ValueError(
                f"classifier_loss {self.classifier_loss} trains a classifier of the memory's own: it needs classifier "
                "'own' and memory 'feature' or 'both'"
            )
        for name, kind in OF_ONE_MEMORY.items():
            value, default = getattr(self, name), getattr(MBJSettings, name)
            if value != default and kind not in self.kinds:
                raise ValueError(
                    f"{name} {value} is of memorised {kind}s: it needs memory '{kind}' or 'both' (or {name} {default})"
                )
        if self.memory != "both":
            for name, value in OF_EACH[self.memory].items():
                if getattr(self, name) is None:
                    object.__setattr__(self, name, value)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Memories in use."""
        return MEMORIES[:2] if self.memory == "both" else (self.memory,)

    def with_seed(self, seed: int) -> MBJSettings:
        """These settings, with the run's seed where they name none."""
        return dataclasses.replace(self, seed=seed) if self.seed is None else self

    def of(self, kind: str) -> dict[str, Any]:
        """eta and size of a memory in use."""
        given = {"eta": self.eta, "size": self.size}
        return {name: OF_EACH[kind][name] if value is None else value for name, value in given.items()}

    @classmethod
    def preset(cls, task: str, name: str = "default") -> MBJSettings:
        """The settings of :data:`PRESETS`; task is "classification" or "retrieval"."""
        return cls(**PRESETS[task][name])


# What says nothing of the other memory.
OF_ONE_MEMORY = {name: "prototype" for name in ("momentum", "scale", "margin")} | {"sample": "feature"}
RULES: dict[str, Rule] = {field.name: field.metadata["rule"] for field in dataclasses.fields(MBJSettings)}

# Values that go together, over the class's own. "paper" has the paper's Eq. 1 and 5, and the loss starts in the first
# step, because the paper names no other. In classification it still trains a second classifier.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "classification": {
        "default": {},
        # The lowest error on scaled CIFAR-10-LT, `balanced_softmax_own_mbj` in docs/results.md: the memory classifier's
        # batch loss balances too, so that the memory pulls gently. The features are cross-entropy's.
        "balanced": {"classifier_loss": "balanced_softmax", "eta": 1.0},
        "paper": {"norm": "sum", "start": 0},
    },
    "retrieval": {
        # MBJ-W's eta is 3 here, and the paper's 1/7 in classification, where prototypes were not tuned: of Omniglot's
        # validation alphabets (docs/results.md) it is the smallest that has most of the gain. Appendix B gives its
        # numbers without telling memories apart, so both have the size and eta of prototypes.
        "default": {"memory": "prototype", "eta": 3.0, "size": 3500},
        "paper": {"memory": "prototype", "eta": 1 / 7, "size": 3500, "norm": "sum", "start": 0},
    },
}


def checked(name: str, value: Any, shown: str = "") -> Any:
    """A setting's value in its own type.

    Args:
        name: of the setting.
        value: as given.
        shown: what the user calls it.

    Raises:
        ValueError: for a value out of range.
    """
    rule = RULES[name]
    if value is None and rule.optional:
        return None
    read = rule.read(value)
    if read is None:
        raise ValueError(f"{shown or name} must be {rule.wanted}, got {value!r}")
    return read


def read(name: str, value: Any, shown: str = "") -> Any:
    """:func:`checked` of what a config or a command line gives, where a number can be text (YAML's 1e-3 is)."""
    if isinstance(value, str) and not RULES[name].choices and name != "class_counts":
        value = _as_number(value)
    return checked(name, value, shown)


def _as_number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


class Memories(nn.ModuleDict):
    """ "feature" and "prototype", those that the settings name, to their losses.

    Args:
        settings: of the run; its ``start`` is in the host's unit and not read here.
        class_counts: (C,) training images per class; None where they come later, by ``set_class_counts``.
        dim: D, length of a feature.
        start: calls before the losses count.
        num_classes: C, needed only where ``class_counts`` come later.
    """

    def __init__(
        self,
        settings: MBJSettings,
        class_counts: Counts | None,
        dim: int,
        start: int = 0,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        shared: dict[str, Any] = {name: getattr(settings, name) for name in ("beta", "norm")}
        shared |= {"start": start, "seed": settings.seed or 0}
        if "feature" in settings.kinds:
            own = {"sample": settings.sample, **settings.of("feature")}
            self["feature"] = FeatureMemoryLoss(class_counts, dim, **own, **shared)
        if "prototype" in settings.kinds:
            own = {name: getattr(settings, name) for name in ("scale", "margin", "momentum")}
            own |= settings.of("prototype")
            self["prototype"] = PrototypeMemoryLoss(class_counts, dim, num_classes=num_classes, **own, **shared)

    @property
    def banks(self) -> list[MemoryBank]:
        """Of each memory, what it holds."""
        return [loss.bank for loss in self.values()]  # type: ignore[misc]

    def forward(self, labels: Tensor, inputs: Mapping[str, Callable[[], tuple[Tensor, ...]]]) -> Tensor:
        """Sum of eta * L_memory over the memories, each of which then remembers.

        Args:
            labels: (B,) classes, or (B, C) class probabilities.
            inputs: kind of memory to what gives its features and its classifier, as its loss takes them but for labels.

        Returns:
            Scalar.
        """
        losses = []
        for kind, loss in self.items():
            features, *classifier = inputs[kind]()
            losses.append(loss(features, labels, *classifier))
        return sum(losses[1:], losses[0])
