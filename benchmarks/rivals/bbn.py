"""BBN (Zhou et al., CVPR 2020, https://arxiv.org/abs/1912.02413): two branches, two samplers, one classifier.

All of the network is shared but its last block. The conventional branch sees batches as they come, the re-balancing
branch batches of a reversed sampler; their features are weighed by alpha = 1 - (T / T_max)^2 and 1 - alpha, and one
linear layer on both gives the logits. The loss weighs the labels of the two batches alike. In the test both branches
see the image, and alpha is 1/2.

Where the authors' code says more than the paper, it is followed: the weighed features are doubled, which leaves them as
they are in the test; T is the number of finished epochs; the branches run one after the other, so that batch
normalisation sees each batch alone. T_max is the run's number of epochs, as the paper has it; the code takes 100 and
200 for its runs of 90 and 180.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

#: Where timm's models, and torchvision's ResNets, hold their blocks.
BLOCKS = ("layer4", "layer3", "stages", "layers", "blocks")


def cumulative_alpha(epoch: int, epochs: int) -> float:
    """alpha = 1 - (T / T_max)^2: from 1, the conventional branch, to almost 0, the re-balancing one.

    Args:
        epoch: T, finished epochs, from 0 to ``epochs`` - 1.
        epochs: T_max, of the whole run.

    Example:
        >>> [cumulative_alpha(epoch, 4) for epoch in range(4)]
        [1.0, 0.9375, 0.75, 0.4375]
    """
    return 1 - (epoch / epochs) ** 2


def reversed_probs(counts: ArrayLike) -> np.ndarray:
    """(C,) probability of each class, P_i = w_i / sum_j w_j with w_i = N_max / N_i.

    Args:
        counts: (C,) training images per class.

    Raises:
        ValueError: for a class without an image.

    Example:
        >>> reversed_probs([6, 3, 2])
        array([0.16666667, 0.33333333, 0.5       ])
    """
    counts = np.asarray(counts, dtype=float)
    if (counts <= 0).any():
        raise ValueError(f"class {int(counts.argmin())} has no image that a reversed sampler could draw")
    weights = counts.max() / counts
    return weights / weights.sum()


class BilateralBranch(nn.Module):
    """A model whose last block there is twice, with one classifier on the features of both.

    Args:
        model: of timm's interface (``get_classifier``, ``reset_classifier``), with one linear classifier. It is taken
            apart: it becomes what is shared and the conventional branch.
        twin: of the same architecture; its last block becomes that of the re-balancing branch.

    Attributes:
        alpha: 0-dim, weight of the conventional branch in training; set it before each epoch.

    Raises:
        ValueError: for a model whose last block cannot be found, or without one linear classifier.
    """

    alpha: Tensor

    def __init__(self, model: Any, twin: Any) -> None:
        super().__init__()
        classifier = model.get_classifier()
        if not isinstance(classifier, nn.Linear):
            raise ValueError(
                f"BBN needs a model with one linear classifier, {type(model).__name__} has "
                f"{type(classifier).__name__}: take another model or another loss"
            )
        self._place = _last_block(model)
        parent, _, name = self._place.rpartition(".")
        both = _Branches(net.get_submodule(self._place) for net in (model, twin))
        setattr(model.get_submodule(parent), name, both)
        self.num_classes, self.num_features = classifier.out_features, classifier.in_features
        self.pretrained_cfg = getattr(model, "pretrained_cfg", {})
        model.reset_classifier(0)
        self.model = model  # (B, D) features
        self.fc = nn.Linear(2 * self.num_features, self.num_classes)
        self.register_buffer("alpha", torch.ones(()), persistent=False)  # of the epoch

    @property
    def branches(self) -> _Branches:
        """The last blocks of the conventional and of the re-balancing branch, an ``nn.ModuleList``."""
        both = self.model.get_submodule(self._place)
        assert isinstance(both, _Branches)
        return both

    def get_classifier(self) -> nn.Module:
        """The linear layer on (B, 2D) features of both branches."""
        return self.fc

    def mixed(self, images: Tensor, reversed_images: Tensor, alpha: float | Tensor) -> Tensor:
        """(B, C) logits 2 W [alpha f_c; (1 - alpha) f_r] + b.

        Args:
            images: (B, ...) of the conventional branch.
            reversed_images: (B, ...) of the re-balancing branch.
            alpha: weight of the conventional branch; a 0-dim tensor inside a CUDA graph.
        """
        conventional, rebalancing = self._features(images, 0), self._features(reversed_images, 1)
        with torch.autocast(conventional.device.type, enabled=False):
            both = [alpha * conventional.float(), (1 - alpha) * rebalancing.float()]
            return self.fc(2 * torch.cat(both, dim=1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C) logits. In training the images are 2B, those of the re-balancing branch behind the others; in the test
        both branches see the B images, and alpha is 1/2."""
        if self.training:
            images, reversed_images = images.chunk(2)
            return self.mixed(images, reversed_images, self.alpha)
        # Two calls, though they share all but a block: a stage around it may know the size of its batch (PVT).
        return self.mixed(images, images, 0.5)

    def _features(self, images: Tensor, branch: int) -> Tensor:
        self.branches.active = branch
        return self.model(images)


class _Branches(nn.ModuleList):
    """In the place of the last block: that of the branch that is asked."""

    active: int

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self[self.active](*args, **kwargs)


def _last_block(model: Any) -> str:
    """Name of the last block of a model."""
    place = next((name for name in BLOCKS if _is_list(getattr(model, name, None))), None)
    if place is None:
        raise ValueError(
            f"BBN doubles a model's last block, but {type(model).__name__} has none of {', '.join(BLOCKS)} that holds "
            "its blocks: take another model or another loss"
        )
    while True:
        name, last = list(model.get_submodule(place).named_children())[-1]
        place = f"{place}.{name}"
        if _is_list(getattr(last, "blocks", None)):
            place = f"{place}.blocks"
        elif not _is_list(last):
            return place


def _is_list(module: Any) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList)


class BilateralLoss(nn.Module):
    """:func:`bbn_loss` with the alpha of a model, called as any criterion, on the (2B,) labels of both branches.

    Args:
        model: on its device.
    """

    alpha: Tensor

    def __init__(self, model: BilateralBranch) -> None:
        super().__init__()
        self.register_buffer("alpha", model.alpha, persistent=False)  # one tensor for both

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Set alpha, the model's too; arguments as of :func:`cumulative_alpha`."""
        self.alpha.fill_(cumulative_alpha(epoch, epochs))

    def forward(self, output: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of (B, C) logits of a model in training."""
        labels, reversed_labels = labels.chunk(2)
        return bbn_loss(output, labels, reversed_labels, self.alpha)


def bbn_loss(logits: Tensor, labels: Tensor, reversed_labels: Tensor, alpha: float | Tensor) -> Tensor:
    """alpha E(z, y_c) + (1 - alpha) E(z, y_r), E the cross-entropy.

    Args:
        logits: (B, C) of :meth:`BilateralBranch.mixed`.
        labels: (B,) of the conventional batch.
        reversed_labels: (B,) of the reversed batch.
        alpha: as there.
    """
    return alpha * F.cross_entropy(logits, labels) + (1 - alpha) * F.cross_entropy(logits, reversed_labels)
