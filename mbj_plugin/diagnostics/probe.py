"""Probe images: a few fixed training images whose features are recorded after each epoch, to see how far they jitter.

The paper's jitter (Section 3.1, Fig. 2) is of one instance over training, which rows in a memory do not show: those
are of many instances. Recording changes nothing that the run depends on.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from mbj_plugin.diagnostics.groups import GROUPS
from mbj_plugin.diagnostics.jitter import angular_variance
from mbj_plugin.longtail import class_groups


class Probe:
    """Angular variance of each probe image over its last recorded features.

    Args:
        features: gives the (P, D) features of the P probe images by the model as it is.
        groups: P names, the class group of each image.
        history: records that are kept, K.
    """

    def __init__(self, features: Callable[[], Tensor], groups: Sequence[str], history: int = 10) -> None:
        self.features, self.groups = features, np.array(groups)
        self.records: deque[Tensor] = deque(maxlen=history)

    def scalars(self) -> dict[str, float]:
        """Record the features as they are now.

        Returns:
            ``mbj/probe_jitter_GROUP`` in rad^2, the mean over the group's images; NaN before the second record.
        """
        self.records.append(self.features().detach().float().cpu())
        jitter = torch.full((len(self.groups),), torch.nan)
        if len(self.records) > 1:
            jitter = angular_variance(torch.stack(list(self.records), dim=1))
        return {f"mbj/probe_jitter_{name}": jitter[self.groups == name].nanmean().item() for name in GROUPS}

    def state_dict(self) -> dict[str, Any]:
        """The records, for an exact resume."""
        return {"records": list(self.records)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with saved records; those of other probe images are of another number and are left out."""
        records = state.get("records", [])
        if all(len(record) == len(self.groups) for record in records):
            self.records.extend(records)


def probe_or_none(make: Callable[[], Probe], logger: logging.Logger) -> Probe | None:
    """The probe that ``make`` gives, tried once; None, with a log line, where that fails.

    Whatever a data set or a model of the user's raises: it must not end the run.
    """
    try:
        probe = make()
        probe.features()  # so that a model that cannot do it says so now
    except Exception as error:
        logger.info("Diagnostics go without probe images: %r", error)
        return None
    return probe


def choose_probe(
    labels: ArrayLike, class_counts: ArrayLike, classes: int = 3, images: int = 2
) -> tuple[np.ndarray, list[str]]:
    """The probe images of a training set: the same ones each time, whatever the seed.

    Args:
        labels: (N,) class of each training image.
        class_counts: (C,) training images per class, which decide on the groups.
        classes: of each group, evenly spaced.
        images: of each class, its first ones.

    Returns:
        (P,) indices into the training set, and the group of each.
    """
    labels, groups = np.asarray(labels), class_groups(class_counts)
    chosen: list[int] = []
    names: list[str] = []
    for name in GROUPS:
        count = min(classes, len(groups[name]))
        spots = np.linspace(0, len(groups[name]) - 1, count).round().astype(int)
        for label in groups[name][spots]:
            of_class = np.flatnonzero(labels == label)[:images]
            chosen += of_class.tolist()
            names += [name] * len(of_class)
    return np.array(chosen, dtype=np.int64), names


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards each module is in the mode it was in, torch's generators as they
    were. Those of Python and NumPy are left alone: a thread of the loader may draw from them meanwhile."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), torch_random_state():
            yield
    finally:
        for module, training in modes:
            module.training = training


def torch_random_state() -> AbstractContextManager[None]:
    """torch's generators, of the CPU and of this process's device, are afterwards as they were."""
    return torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else [])
