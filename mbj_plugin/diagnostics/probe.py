"""Probe images: a few fixed training images whose features are recorded now and then, to see how far they jitter.

The paper's jitter (Section 3.1, Fig. 2) is of one instance over training, which rows in a memory do not show: those
are of many instances. Recording changes nothing that the run depends on.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from mbj_plugin.diagnostics.jitter import angular_variance
from mbj_plugin.diagnostics.memory_report import GROUPS, nanmean
from mbj_plugin.longtail import class_groups


class Probe:
    """Angular variance of each probe image over its last recorded features.

    Args:
        features: gives the (P, D) features of the P probe images by the model as it is.
        groups: P names, the class group of each image.
        history: records that are kept, K.
        period: steps between two records at least, so that the cost stays below one forward pass in 50 steps.
    """

    def __init__(
        self, features: Callable[[], Tensor], groups: Sequence[str], history: int = 10, period: int = 50
    ) -> None:
        self.features, self.groups, self.history = features, list(groups), history
        self.period: float = period
        self.last_step = -period
        self._set([])

    def _set(self, records: list[Tensor]) -> None:
        self.records = records[-self.history :]
        jitter, owner = np.full(len(self.groups), np.nan), np.array(self.groups)
        if len(self.records) > 1:
            jitter = angular_variance(torch.stack(self.records, dim=1)).numpy()
        means = {name: nanmean(jitter[owner == name]) for name in GROUPS}
        self._scalars = {f"mbj/probe_jitter_{name}": mean for name, mean in means.items()}

    def record(self, step: int, last: bool = False) -> None:
        """Record the features, if ``period`` steps have passed since the last time, or the run has ended."""
        if step - self.last_step >= self.period or (last and math.isfinite(self.period)):  # infinite: it has stopped
            self._set([*self.records, self.features().detach().float().cpu()])
            self.last_step = step

    def stop(self) -> None:
        """Record no more: the scalars stay NaN."""
        self.period = math.inf
        self._set([])

    def scalars(self, step: int) -> dict[str, float]:
        """``mbj/probe_jitter_GROUP`` in rad^2, the mean over the group's images; NaN before the second record, and
        where the last one is not of this step."""
        return self._scalars if step == self.last_step else dict.fromkeys(self._scalars, math.nan)

    def state_dict(self) -> dict[str, Any]:
        """The records, for an exact resume."""
        return {"last_step": self.last_step, "records": self.records}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with saved records; those of other probe images are of another number and are left out."""
        if all(len(record) == len(self.groups) for record in state["records"]):
            self.last_step = state["last_step"]
            self._set(state["records"])


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
def preserved_random_state(torch_only: bool = False) -> Iterator[None]:
    """All generators of the process as they were before, whatever is drawn inside.

    Args:
        torch_only: leave those of Python and NumPy alone, where another thread draws from them meanwhile.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        if not torch_only:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def evaluating(model: nn.Module, torch_only: bool = False) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards each module is in the mode it was in, each generator as it was.

    Args:
        model: evaluated inside.
        torch_only: as for :func:`preserved_random_state`.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), preserved_random_state(torch_only):
            yield
    finally:
        for module, training in modes:
            module.training = training
