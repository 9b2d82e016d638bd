"""fast-reid's checkpoints of any age: one place reads them, and runs no code that a file brings."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastreid_today.changes import replaces

logger = logging.getLogger("fastreid.today")
_multiarray: Any = np._core.multiarray if hasattr(np, "_core") else np.core.multiarray  # type: ignore[attr-defined]


def _under(module: str, function: Callable) -> Callable:
    @functools.wraps(function)
    def named(*arguments: Any) -> Any:
        return function(*arguments)

    named.__module__ = module
    return named


# A NumPy number or array is pickled as these; NumPy 1 and 2 give the two functions another module. No dtype of objects.
NUMPY: list[Any] = [
    *(_under(f"numpy.{core}.multiarray", _multiarray.scalar) for core in ("core", "_core")),
    *(_under(f"numpy.{core}.multiarray", _multiarray._reconstruct) for core in ("core", "_core")),
    *(np.ndarray, np.dtype),
    *dict.fromkeys(type(np.dtype(code)) for code in "?bhilqBHILQefd"),
]


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """A checkpoint on the CPU: tensors, plain types, NumPy's numbers and arrays, and nothing else.

    Returns:
        What the file holds, its weights under ``model``: so are those of a bare state dict and of a ``state_dict``.

    Raises:
        ValueError: for a file that is cut short, of another kind, or holds what would run code.
    """
    if hasattr(torch.serialization, "safe_globals"):
        allowing: contextlib.AbstractContextManager = torch.serialization.safe_globals(NUMPY)
    else:  # torch 2.4
        torch.serialization.add_safe_globals(NUMPY)
        allowing = contextlib.nullcontext()
    with open(path, "rb") as file, allowing:
        try:
            held = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises another type for each way in which a file can be broken
            code = re.search(r"GLOBAL (\S+) was not an allowed", str(error))
            why = f"it holds {code[1]}, no tensor and no plain type" if code else "it is cut short or of another kind"
            raise ValueError(f"{path} cannot be read as a checkpoint: {why}") from error
    if isinstance(held, Mapping):
        if isinstance(held.get("model"), Mapping):
            return dict(held)
        weights = held.get("state_dict", held)
        if isinstance(weights, Mapping) and weights and all(_is_weight(value) for value in weights.values()):
            return {"model": weights}
        what = f"a dict of {', '.join(map(str, list(held)[:5])) or 'nothing'}"
    else:
        what = type(held).__name__
    raise ValueError(f"{path} holds {what}, where weights are expected: a state dict, alone or as `model`")


def _is_weight(value: object) -> bool:
    return isinstance(value, torch.Tensor | np.ndarray)


@replaces(
    "utils.checkpoint:Checkpointer._load_file",
    "a checkpoint with a NumPy number (tools/plain_train_net.py): UnpicklingError, torch >= 2.6",
)
def old_checkpoints(_, self, path):
    """Checkpoints load with NumPy's numbers in them, bare state dicts too; what is no checkpoint is a ValueError."""
    return load_checkpoint(path)


@replaces("utils.checkpoint:Checkpointer.load", "MODEL.WEIGHTS that are not there: an AssertionError")
def absent_weights(load, self, path, *arguments, **options):
    """A ValueError that names the file."""
    try:
        return load(self, path, *arguments, **options)
    except AssertionError as error:
        if not str(error).endswith("not found!"):
            raise
        raise ValueError(f"there is no checkpoint {path}: MODEL.WEIGHTS and --resume take a file") from error


@replaces(
    "utils.checkpoint:Checkpointer._load_model",
    "weights of another model load nothing, and the run goes on from random ones",
)
def foreign_weights(load_model, self, checkpoint):
    """Weights of which no parameter fits the model are a ValueError, those of which fewer than half fit a warning."""
    saved = list(checkpoint["model"])
    incompatible = load_model(self, checkpoint)
    if incompatible is None:  # a subclass's own
        return None
    names = [name for name, _ in self.model.named_parameters()]
    fits = len(set(names) - set(incompatible.missing_keys))
    if names and not fits:
        raise ValueError(
            f"none of the model's {len(names)} parameters, such as {names[0]}, is in the checkpoint by name and "
            f"shape, which holds {len(saved)}, such as {saved[0] if saved else 'none'}: give weights of this model"
        )
    if 2 * fits < len(names):
        logger.warning(f"Only {fits} of the model's {len(names)} parameters are in the checkpoint: the others stay")
    return incompatible
