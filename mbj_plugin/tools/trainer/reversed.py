"""Two batches for each step, as BBN takes them: one as it comes, one of a sampler that favours rare classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from mbj_plugin.batch_losses.bbn import reversed_probs
from mbj_plugin.longtail import class_counts
from mbj_plugin.timm.counts import dataset_labels
from mbj_plugin.tools.trainer.images import WrappedImages


class ReversedDraws(WrappedImages):
    """A training set that answers every index with a draw: a class by :func:`reversed_probs`, then any image of it.

    Draws come from torch's generator, which each worker of a loader has seeded for itself.

    Args:
        dataset: the training set.

    Raises:
        ValueError: for a data set that only streams, or whose labels cannot be read without decoding images.
    """

    def __init__(self, dataset: Any) -> None:
        if isinstance(dataset, IterableDataset):
            raise ValueError("--loss bbn asks for images by their class, which a data set that streams cannot give")
        self.dataset = dataset
        labels = dataset_labels(dataset)
        counts = class_counts(labels)
        self._cumulative = torch.from_numpy(np.cumsum((reversed_probs(counts) / counts)[labels]))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        number = torch.rand((), dtype=torch.float64) * self._cumulative[-1]
        return self.dataset[int(torch.searchsorted(self._cumulative, number))]


class PairedLoader:
    """Batches of two loaders of one length, the second's behind the first's; in all else the first loader."""

    def __init__(self, loader: Any, other: Any) -> None:
        self._loader, self._other = loader, other

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for first, second in zip(self._loader, self._other, strict=True):
            images, labels = (torch.cat(pair) for pair in zip(first, second, strict=True))
            yield images, labels
