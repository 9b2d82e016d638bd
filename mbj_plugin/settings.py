"""The settings of MBJ: each one once, with its range, its default and what it does. Hosts only map names to them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mbj_plugin.batch_losses import LOSSES
from mbj_plugin.functional import NORMS
from mbj_plugin.losses import RANGES
from mbj_plugin.start import WANTED, Start, as_start

MEMORIES = ("feature", "prototype", "both")
CLASSIFIERS = ("own", "shared")
#: What is None has its own default for each memory, as in the paper.
OF_EACH = {"feature": {"eta": 15.0, "size": 500}, "prototype": {"eta": 1 / 7, "size": 3500}}
NO_OWN_CLASSIFIER = (
    "classifier_loss trains a classifier of the memory's own: it needs classifier 'own' and memory 'feature' or 'both'"
)
WORDS = {"0": False, "1": True, "false": False, "true": True}


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


def _switch(default: bool, help: str) -> Any:
    return _setting(default, bool, "True or False", lambda value: value if isinstance(value, bool) else None, help)


@dataclass(frozen=True)
class MBJSettings:
    """What a user can set; ``MBJSettings.preset(task, name)`` gives the values that go together.

    Raises:
        ValueError: for a value out of range, or of a memory that is not in use, naming it.
    """

    memory: str = _one_of(
        "feature",
        MEMORIES,
        "what is remembered: past features (MBJ-F, trains the classifier), past prototypes (MBJ-W, trains the "
        "embedding) or both (MBJ-WF)",
    )
    classifier: str = _one_of(
        "own",
        CLASSIFIERS,
        "what the memory of features trains: 'own', a classifier of its own, while the features are those of a run "
        "without MBJ; or 'shared', the one that trains the features, which learn to undo it",
    )
    classifier_loss: str | None = _one_of(
        None,
        LOSSES,
        "batch loss of the memory's own classifier (default: the batch loss of the features)",
    )
    eta: float | None = _in_range(
        "eta",
        None,
        "weight of each memory's loss (Eq. 2); higher = lower tail error and higher head error, 0 = off (default: 15 "
        "for features, 1/7 for prototypes, as in the paper)",
    )
    size: int | None = _in_range(
        "size",
        None,
        "slots of each memory; more = older rows, and a tail class keeps more of them (default: 500 features, 3500 "
        "prototypes)",
    )
    sample: int = _in_range(
        "sample",
        0,
        "rows of the memory of features that are drawn anew for each step, for large memories: the same loss on "
        "average, at a fraction of the cost; 0 = all",
    )
    beta: float = _in_range(
        "beta",
        1.5,
        "re-balancing (Eq. 1 and 5): the memory's class mix is N^(1-beta), so 1 is uniform and above 1 favours the "
        "tail at the cost of the head",
    )
    norm: str = _one_of(
        "max",
        NORMS,
        "'max' lets every row of the rarest class in and keeps the memory young; 'sum' is the paper's Eq. 1 and 5, "
        "which lets in far fewer rows of all classes",
    )
    start: Start = _setting(  # noqa: RUF009
        "auto",
        str,
        WANTED.format(unit="epochs or iterations"),
        as_start,
        "when the memory loss starts: 'auto' (the first decay of the learning rate), a fraction of the run below 1, or "
        "epochs (timm) or iterations (fast-reid); too early and the head drowns",
    )
    momentum: float = _in_range(
        "momentum",
        0.0,
        "remember a moving average of the prototypes (MBJ*); smooths the jitter away, which the paper found to cost "
        "the tail",
    )
    scale: float = _in_range("scale", 16.0, "alpha of Eq. 4, the loss on the memory of prototypes")
    margin: float = _in_range("margin", 0.2, "delta of Eq. 4")
    seed: int | None = _in_range("seed", None, "seed of the draws for the memories (default: the run's own)")
    class_counts: str | None = _setting(
        None,
        str,
        "the name of a file",
        lambda value: value if isinstance(value, str) else None,
        "JSON list of training images per class, for data sets that cannot be counted",
    )
    diagnostics: bool = _switch(
        True,
        "write what the memory holds and how features jitter, also without MBJ; it changes nothing of the run",
    )

    def __post_init__(self) -> None:
        for name in RULES:
            object.__setattr__(self, name, checked(name, getattr(self, name)))
        if self.classifier_loss is not None and (self.classifier == "shared" or self.memory == "prototype"):
            raise ValueError(NO_OWN_CLASSIFIER)
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

    def of(self, kind: str) -> dict[str, Any]:
        """eta and size of a memory in use."""
        given = {"eta": self.eta, "size": self.size}
        return {name: OF_EACH[kind][name] if value is None else value for name, value in given.items()}

    def effective(self) -> dict[str, Any]:
        """All settings as plain values, for what is reported; with two memories, eta and size are by memory."""
        values = dataclasses.asdict(self)
        if self.memory == "both":
            values |= {name: {kind: self.of(kind)[name] for kind in self.kinds} for name in ("eta", "size")}
        return values

    @classmethod
    def preset(cls, task: str, name: str = "default") -> MBJSettings:
        """The settings of :data:`PRESETS`; task is "classification" or "retrieval"."""
        return cls(**PRESETS[task][name])


# What says nothing of the other memory.
OF_ONE_MEMORY = {name: "prototype" for name in ("momentum", "scale", "margin")} | {"sample": "feature"}
RULES: dict[str, Rule] = {field.name: field.metadata["rule"] for field in dataclasses.fields(MBJSettings)}

# Values that go together, over the class's own. "paper" reads to the letter what the paper leaves open: Eq. 1 and 5 as
# printed, and a loss that counts from the first step on.
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
    if isinstance(value, str) and RULES[name].kind is bool:
        value = WORDS.get(value.strip().lower(), value)
    elif isinstance(value, str) and not RULES[name].choices and name != "class_counts":
        value = _as_number(value)
    return checked(name, value, shown)


def _as_number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
