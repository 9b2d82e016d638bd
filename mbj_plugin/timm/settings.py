"""The settings of MBJ in timm, from command-line flags (train_timm) or the variable MBJ (timm's own train.py)."""

from __future__ import annotations

import dataclasses
import difflib
import logging
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from typing import Any

from mbj_plugin.batch_losses import LOSSES, create_loss
from mbj_plugin.functional import NORMS, sampling_probs
from mbj_plugin.timm.criterion import CLASSIFIERS, MEMORIES, MBJLoss
from mbj_plugin.timm.schedule import parse_start
from mbj_plugin.timm.task import checkpoint_classifier

_logger = logging.getLogger("mbj_plugin")

# LDAM brings a classifier of its own kind, which would not be linear in the features.
CLASSIFIER_LOSSES = tuple(name for name in LOSSES if name != "ldam_drw")


@dataclasses.dataclass(frozen=True)
class MBJSettings:
    """What a user can set. See :class:`mbj_plugin.timm.criterion.MBJLoss` for the meaning.

    Raises:
        ValueError: for a value out of range, naming it.
    """

    memory: str = "feature"
    classifier: str = "own"
    classifier_loss: str | None = None
    eta: float | None = None
    size: int | None = None
    sample: int = 0
    beta: float = 1.5
    norm: str = "max"
    start: str | float = "auto"
    momentum: float = 0.0
    class_counts: str | None = None
    diagnostics: bool = True

    def __post_init__(self) -> None:
        parse_start(self.start)
        self.criterion([1, 1], None, 0, 0)
        sampling_probs([1], self.beta, self.norm)

    def criterion(self, class_counts: Any, base: Any, start: int, seed: int, smoothing: float = 0.0) -> MBJLoss:
        """The criterion of these settings; ``start`` in calls, ``smoothing`` that of timm's Mixup."""
        return MBJLoss(
            class_counts,
            base,
            memory=self.memory,
            classifier=self.classifier,
            classifier_loss=self._classifier_loss(class_counts),
            size=self.size,
            sample=self.sample,
            eta=self.eta,
            beta=self.beta,
            norm=self.norm,
            start=start,
            momentum=self.momentum,
            seed=seed,
            smoothing=smoothing,
        )

    def _classifier_loss(self, class_counts: Any) -> Any:
        if self.classifier_loss is None:
            return None
        if self.classifier_loss not in CLASSIFIER_LOSSES:
            raise ValueError(f"classifier_loss must be one of {CLASSIFIER_LOSSES}, got {self.classifier_loss!r}")
        return create_loss(self.classifier_loss, class_counts)

    def resumed(self, checkpoint: dict[str, Any]) -> MBJSettings:
        """Settings to go on with from a checkpoint: where its memory trained the only classifier, it still does."""
        state = checkpoint.get("task_state") or {}
        if self.classifier == "shared" or "mbj" not in state or checkpoint_classifier(state) == "own":
            return self
        _logger.warning(
            "The checkpoint's run had one classifier for both losses: going on with it, as --mbj-classifier shared. "
            "A new run with a classifier of the memory's own has the lower error."
        )
        return dataclasses.replace(self, classifier="shared")

    @classmethod
    def from_text(cls, text: str) -> MBJSettings:
        """Settings from ``key=value,key=value``, the content of the variable MBJ; empty = the defaults.

        Raises:
            ValueError: for an unknown key or a value that is no number.
        """
        types = {"eta": float, "size": int, "sample": int, "beta": float, "momentum": float, "diagnostics": int}
        names = [field.name for field in dataclasses.fields(cls)]
        values: dict[str, Any] = {}
        for part in filter(None, (p.strip() for p in text.split(","))):
            key, separator, value = (piece.strip() for piece in part.partition("="))
            if key not in names or not separator:
                near = difflib.get_close_matches(key, names, 1)
                hint = f", did you mean {near[0]!r}?" if near and near[0] != key else ""
                raise ValueError(f"MBJ: cannot read {part!r}: write key=value with a key of {names}{hint}")
            try:
                values[key] = types.get(key, str)(value)
            except ValueError as error:
                raise ValueError(f"MBJ: {key} must be a number, got {value!r}") from error
        if values.get("diagnostics", 1) not in (0, 1):
            raise ValueError(f"MBJ: diagnostics must be 1 (on) or 0 (off), got {values['diagnostics']}")
        return cls(**values | {"diagnostics": bool(values.get("diagnostics", 1))})

    @classmethod
    def from_args(cls, args: Namespace) -> MBJSettings:
        """Settings from the flags of :func:`add_arguments`."""
        return cls(**{field.name: getattr(args, f"mbj_{field.name}") for field in dataclasses.fields(cls)})


# Values of flags that go together, by the name of --mbj-recipe.
RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    # The lowest error on scaled CIFAR-10-LT, `balanced_softmax_own_mbj` in docs/results.md: the memory classifier's
    # batch loss balances too, so that the memory pulls gently. The features are cross-entropy's.
    "balanced": {"mbj_classifier_loss": "balanced_softmax", "mbj_eta": 1.0},
    # What the paper leaves open, read to the letter: Eq. 1 as printed, and a loss that counts from the first step on.
    "paper": {"mbj_norm": "sum", "mbj_start": "0"},
}


def add_arguments(parser: ArgumentParser) -> None:
    """The flags ``--mbj`` and ``--mbj-...``."""
    group = parser.add_argument_group("Memory-based Jitter")
    default = MBJSettings()

    def add(name: str, help: str, **kwargs: Any) -> None:
        group.add_argument(f"--mbj-{name.replace('_', '-')}", default=getattr(default, name), help=help, **kwargs)

    group.add_argument(
        "--mbj", action="store_true", help="train with Memory-based Jitter: lowers tail error, may raise head error"
    )
    group.add_argument(
        "--mbj-recipe",
        choices=tuple(RECIPES),
        default="default",
        help="'balanced' is --mbj-classifier-loss balanced_softmax --mbj-eta 1, the lowest error that we measured; "
        "'paper' reads the paper to the letter, --mbj-norm sum --mbj-start 0; flags given beside it still count "
        "(default: %(default)s)",
    )
    add(
        "memory",
        "what is remembered: past features (MBJ-F, trains the classifier, the paper's choice here), past prototypes "
        "(MBJ-W, trains the embedding) or both (MBJ-WF) (default: %(default)s)",
        choices=MEMORIES,
    )
    add(
        "classifier",
        "what the memory of features trains: 'own', a classifier of its own, which the checkpoint holds, while the "
        "features are those of a run without MBJ; or 'shared', the one that trains the features, which learn to undo "
        "it (default: %(default)s)",
        choices=CLASSIFIERS,
    )
    add(
        "classifier_loss",
        "batch loss of a classifier of the memory's own, for hard labels (default: that of the features, --loss)",
        choices=CLASSIFIER_LOSSES,
    )
    add(
        "eta",
        "weight of the memory loss; higher = lower tail error and higher head error, 0 = off (default: 15 for "
        "features, 1/7 for prototypes, as in the paper)",
        type=float,
        metavar="ETA",
    )
    add(
        "size",
        "slots of each memory; more = older features, and a tail class keeps more of them (default: 500 features, "
        "3500 prototypes)",
        type=int,
        metavar="N",
    )
    add(
        "sample",
        "rows of the memory of features that are drawn anew for each step, for large memories: the same loss on "
        "average, at a fraction of the cost; 0 = all (default: %(default)s)",
        type=int,
        metavar="K",
    )
    add(
        "beta",
        "re-balancing: the memory's class mix is N^(1-beta), so 1 is uniform and above 1 favours the tail at the cost "
        "of the head (default: %(default)s)",
        type=float,
        metavar="BETA",
    )
    add(
        "norm",
        "'max' lets every row of the rarest class in and keeps the memory young; 'sum' is the paper's Eq. 1, which "
        "lets in far fewer rows of all classes (default: %(default)s)",
        choices=NORMS,
    )
    add(
        "start",
        "when the memory loss starts: epochs, a fraction of the run below 1, or 'auto' (the schedule's first decay); "
        "too early and the head drowns (default: %(default)s)",
        metavar="WHEN",
    )
    add(
        "momentum",
        "remember a moving average of the prototypes (MBJ*); smooths the jitter away, which the paper found to cost "
        "the tail (default: %(default)s)",
        type=float,
        metavar="M",
    )
    add(
        "class_counts",
        "JSON list of training images per class, for data sets that cannot be counted",
        metavar="FILE",
    )
    add(
        "diagnostics",
        "write what the memory holds and how features jitter, also without --mbj: diagnostics.jsonl, TensorBoard, "
        "summary.csv; it changes nothing of the run (default: on)",
        action=BooleanOptionalAction,
    )
