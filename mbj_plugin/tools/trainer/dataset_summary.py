"""What the data of a run are: said at the start, kept in checkpoint and results.json, checked on resume."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

import numpy as np
from torch import nn

from mbj_plugin.command_line import UserError
from mbj_plugin.functional import sampling_probs
from mbj_plugin.tools.trainer.data import innermost


@dataclasses.dataclass
class DataFacts:
    """Images of a run: (C,) training images per class, the classes' names where the data set has any, and the number of
    images for evaluation, which a stream does not tell."""

    counts: np.ndarray
    names: list[str] | None
    evaluation_images: int | None

    def state(self) -> dict[str, Any]:
        """In plain types, for checkpoint and results.json."""
        return {
            "images": int(self.counts.sum()),
            "class_counts": self.counts.tolist(),
            "class_names": self.names,
            "evaluation_images": self.evaluation_images,
        }

    def line(self) -> str:
        """One line for the start of a run."""
        most, least = int(self.counts.argmax()), int(self.counts.argmin())
        evaluated = f"; {self.evaluation_images:,} for evaluation" if self.evaluation_images is not None else ""
        return (
            f"{self.counts.sum():,} training images in {len(self.counts):,} classes, from {self.counts[most]:,} "
            f"({self.name(most)}) to {self.counts[least]:,} ({self.name(least)}){evaluated}."
        )

    def name(self, c: int) -> str:
        """What to call class ``c``."""
        return repr(self.names[c]) if self.names else f"class {c}"

    def check_same(self, saved: Mapping[str, Any], path: str) -> None:
        """Raise ValueError for the checkpoint ``path`` of other classes or images; ``saved`` is its :meth:`state`."""
        own = self.state()
        keys = ["class_counts"] + ["class_names"] * bool(saved["class_names"] and own["class_names"])
        rows = [list(zip(*(each[key] for key in keys), strict=True)) for each in (saved, own)]
        for c, pair in enumerate(zip_longest(*rows)):
            if pair[0] != pair[1]:
                was, now = (" images of ".join(map(str, row)) if row else "none" for row in pair)
                raise UserError(
                    f"{path} was trained on other images: class {c} was {was}, here it is {now}. Give the images of "
                    "that run by --data-dir, or begin anew with its weights by --initial-checkpoint"
                )


def class_names(dataset: Any) -> list[str] | None:
    """Names of the classes in the order of their indices, where the data set has any."""
    dataset = innermost(dataset)
    if (names := getattr(dataset, "classes", None)) is not None:  # torchvision, the digits
        return [str(name) for name in names]
    mapping = getattr(getattr(dataset, "reader", None), "class_to_idx", None)
    return [str(name) for name in sorted(mapping, key=mapping.__getitem__)] if mapping else None


def memory_lines(
    memories: Mapping[str, nn.Module], facts: DataFacts, start: float, epochs: int, steps: int
) -> list[str]:
    """What to know of the memory before training: the line on the epoch at which its loss starts, and one for each
    memory that will stay nearly empty. ``steps`` are those of an epoch."""
    lines = [f"The memory loss starts at epoch {start:g} of {epochs}."]
    if start >= epochs:
        lines = [
            f"The memory loss would start at epoch {start:g}, and the run ends at {epochs}: it trains without MBJ. Set "
            "--mbj-start (0 is at once), or more --epochs."
        ]
    for kind, memory in memories.items():
        loss: Any = memory
        size = len(loss.bank.labels)
        held = epochs * _rows(kind, facts.counts, loss.beta, loss.norm, steps)
        if held < size / 2:
            smallest = int(facts.counts.argmin())
            lines.append(
                f"At the end of the run the memory of {kind}s will hold about {held:.0f} entries, and its size is "
                f"{size}: {_number(held / epochs)} entries are stored in an epoch (Eq. 1); the smallest class, "
                f"{facts.name(smallest)}, has {facts.counts[smallest]} "
                f"image{'s' * int(facts.counts[smallest] != 1)}. To store more, use "
                f"{'--mbj-norm max or ' * (loss.norm == 'sum')}a smaller --mbj-beta; or give a smaller --mbj-size."
            )
        lines += _tiny_class(kind, facts, loss, steps)
    return lines


def _tiny_class(kind: str, facts: DataFacts, loss: Any, steps: int) -> list[str]:
    """A line where one class, far rarer than the next, decides how much enters under ``norm max``."""
    order = np.argsort(facts.counts, kind="stable")
    if loss.norm != "max" or len(order) < 3:
        return []
    rarest, following = facts.counts[order[:2]]
    now, without = (_rows(kind, counts, loss.beta, "max", steps) for counts in (facts.counts, facts.counts[order[1:]]))
    if following < 4 * rarest or without < 2 * now:
        return []
    return [
        f"The rarest class, {facts.name(int(order[0]))}, has {rarest} image{'s' * int(rarest != 1)}, the next "
        f"{following}. With --mbj-norm max the rarest class decides how much is stored: {_number(now)} entries in an "
        f"epoch enter the memory of {kind}s, and without this class {_number(without)} would. If it is no class of "
        "yours, remove its folder; or use a smaller --mbj-beta."
    ]


def _rows(kind: str, counts: np.ndarray, beta: float, norm: str, steps: int) -> float:
    """Rows that enter in an epoch, by Eq. 1."""
    probs = sampling_probs(counts.tolist(), beta, norm).numpy()
    return float((probs * counts).sum() if kind == "feature" else steps * probs.sum())


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
