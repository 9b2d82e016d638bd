"""What comes in from outside: numbers in their range, class counts and targets of one form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

Counts = Tensor | np.ndarray | Sequence[int] | Mapping[int, int]
MOST_CLASSES = 10**7
MOST_IMAGES = 10**12


def is_number(value: Any) -> bool:
    """Whether it is a real number, which True is not."""
    return isinstance(value, Real) and not isinstance(value, bool)


class Range(NamedTuple):
    """What a number may be, ends included: finite, and neither True nor a text."""

    low: float = 0.0
    high: float = math.inf
    whole: bool = False
    above: bool = False

    @property
    def wanted(self) -> str:
        """The range in words."""
        low = f"above {self.low:g}" if self.above else f"from {self.low:g}"
        most = f"{self.high}" if self.whole else "below 1" if self.high == BELOW_1 else f"{self.high:g}"
        high = "" if math.isinf(self.high) else f" to {most}"
        return f"a {'whole ' if self.whole else ''}number {low}{high}"

    def read(self, value: Any) -> Any:
        """The value as int or float, None where it is outside."""
        if not is_number(value) or not self.low <= value <= self.high:
            return None
        if math.isinf(value) or (self.above and value == self.low) or (self.whole and value != int(value)):
            return None
        return int(value) if self.whole else float(value)

    def checked(self, name: str, value: Any) -> Any:
        """:meth:`read`.

        Raises:
            ValueError: for a value outside.
        """
        read = self.read(value)
        if read is None:
            raise ValueError(f"{name} must be {self.wanted}, got {value!r}")
        return read


BELOW_1 = math.nextafter(1.0, 0.0)
MOST_ROWS = 10**7  # twenty times iNaturalist18
#: Of what the memories and their losses take. What goes beyond is a slip of the pen, and would overflow in fp32 or in
#: the allocator.
RANGES = {
    "eta": Range(0, 1e6),
    "size": Range(1, MOST_ROWS, whole=True),
    "sample": Range(0, MOST_ROWS, whole=True),
    "beta": Range(0, 100),
    "start": Range(0, 10**12, whole=True),
    "seed": Range(0, 2**63 - 1, whole=True),
    "momentum": Range(0, BELOW_1),
    "scale": Range(0, 1e6, above=True),
    "margin": Range(0, 1e6),
    "tau": Range(0, 100),
    "gamma": Range(0, 100),
}


def counts_tensor(class_counts: Counts) -> Tensor:
    """(C,) training images per class, of a list, a tensor, or a ``dict`` or ``Counter`` by class.

    Raises:
        ValueError: for what is no list of counts, or empty, negative, no whole numbers or all zero.

    Example:
        >>> counts_tensor({0: 30, 2: 5})
        tensor([30,  0,  5])
    """
    if class_counts is None:
        raise ValueError("class_counts is None: give the number of training images of each class")
    if isinstance(class_counts, Mapping):
        wrong = [k for k in class_counts if isinstance(k, bool) or not isinstance(k, Integral)]
        wrong = wrong or [k for k in class_counts if not 0 <= k < MOST_CLASSES]
        if wrong or not class_counts:
            raise ValueError(f"class_counts by class must have the class indices 0, 1, ... as keys, got {wrong[:3]}")
        class_counts = [class_counts.get(label, 0) for label in range(int(max(class_counts)) + 1)]
    try:
        counts = torch.as_tensor(class_counts)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"class_counts must be a list of C whole numbers, got {str(class_counts)[:100]}") from None
    if counts.ndim != 1 or counts.numel() == 0:
        raise ValueError(f"class_counts must be a list of C counts, got shape {tuple(counts.shape)}")
    switches = counts.dtype == torch.bool or (
        isinstance(class_counts, Sequence) and any(isinstance(count, bool) for count in class_counts)
    )
    if switches or not torch.isfinite(counts).all() or (counts < 0).any() or (counts != counts.round()).any():
        raise ValueError(f"class_counts must be whole numbers >= 0, got {counts[:20].tolist()}")
    if not (counts > 0).any():
        raise ValueError("class_counts are all zero: give the number of training images of each class")
    if (counts > MOST_IMAGES).any():
        raise ValueError(f"class_counts must be at most {MOST_IMAGES:.0e} images of a class, got {counts.max().item()}")
    return counts


def check_target(target: Tensor, rows: int, classes: int | None = None, *, soft: bool = False) -> None:
    """The contract of every target: (B,) integer classes, a negative one unlabelled; or, where ``soft``, (B, C)
    floating class probabilities, an all-zero row unlabelled.

    By shape and dtype alone, so that no device is waited for. On a CPU, where values cost nothing, a class of C or more
    and rows that sum to more than 1 (the multi-hot targets of several labels) are refused too.

    Args:
        target: of a loss, a memory or a head.
        rows: B.
        classes: C; None where it is not known.
        soft: whether class probabilities will do.

    Raises:
        ValueError: for anything else.
    """
    if not isinstance(target, Tensor):
        raise ValueError(f"the target must be a tensor, got {type(target).__name__}")
    shape, floating = tuple(target.shape), target.is_floating_point()
    if not floating and target.dtype != torch.bool and shape == (rows,):
        if rows and classes is not None and on_host(target) and (largest := host_values(target).max()) >= classes:
            raise ValueError(
                f"label {largest} is out of range: the labels must be below {classes}, negative = unlabelled"
            )
        return
    if soft and floating and len(shape) == 2 and shape[0] == rows and shape[1] == (classes or shape[1]):
        if rows and on_host(target):
            if target.detach().sum(1).max() > 1.01:
                raise ValueError("the target's rows must sum to at most 1: MBJ takes one class for each image")
            if target.detach().min() < 0:
                raise ValueError(f"the target's probabilities must be from 0 to 1, got {target.min():g}")
        return
    wanted = f"({rows},) integer classes" + (f" or ({rows}, {classes or 'C'}) class probabilities" if soft else "")
    raise ValueError(f"the target must be {wanted}, got {shape} {target.dtype}" + _advice(target, soft))


def check_matrix(name: str, value: Any, columns: int | None = None) -> None:
    """Raise ValueError for what is no matrix of floating-point numbers with this many columns.

    Args:
        name: of the value.
        value: logits, features or the weight of a classifier.
        columns: its second size; None where any will do.
    """
    got = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
    floating = isinstance(value, Tensor) and value.is_floating_point()
    if not floating or value.ndim != 2 or value.shape[1] != (columns or value.shape[1]):
        raise ValueError(f"the {name} must be a floating-point tensor of shape (..., {columns or '...'}), got {got}")


def check_logits(logits: Tensor, target: Tensor, classes: int | None = None, *, soft: bool = False) -> None:
    """:func:`check_matrix` of (B, C) logits, and :func:`check_target` of their target."""
    check_matrix("logits", logits, classes)
    check_target(target, *logits.shape, soft=soft)


def _advice(target: Tensor, soft: bool) -> str:
    if target.ndim == 2 and target.shape[1] == 1:
        return ": take target.squeeze(1)"
    if target.is_floating_point() and target.ndim == 2 and not soft:
        return ": turn Mixup, CutMix and label smoothing off, or take a loss that knows soft targets"
    return ": take target.long()" if target.is_floating_point() and target.ndim == 1 else ""


def host_values(tensor: Tensor) -> np.ndarray:
    """The numbers of a tensor that is :func:`on_host`, to read and to write; no operation of torch's."""
    values = np.from_dlpack(tensor)
    return values if values.flags.writeable else tensor.numpy()  # NumPy before 2.1


def on_host(tensor: Tensor) -> bool:
    """Whether reading a value costs nothing: a plain tensor on the CPU, no fake one, and no graph is being made."""
    return type(tensor) is Tensor and tensor.is_cpu and not torch.compiler.is_compiling()
