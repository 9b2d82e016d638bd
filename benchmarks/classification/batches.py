"""What each step of a run sees: images on the device, by draws that depend on the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.classification.data import Images
from benchmarks.classification.recipe import class_draws, crop_and_flip, epoch_draws, normalize, pad_images, statistics
from benchmarks.classification.settings import SAMPLERS, Method, Protocol
from benchmarks.classification.strong import augmented, mixed, mixed_labels, mixing_weights
from benchmarks.rivals.bbn import reversed_probs
from mbj_plugin.longtail import count_classes


class Batches:
    """Batches of a training set, epoch by epoch.

    Args:
        protocol: how.
        method: with its sampler. Behind each batch of BBN's comes a second one, of the reversed sampler.
        images: already shrunk.
        num_classes: C.
        seed: of the run.
        device: of all that is returned.

    Attributes:
        steps: S, of an epoch.
        labels: (N,) of the training images.

    Raises:
        ValueError: for fewer images than one batch.
    """

    def __init__(
        self, protocol: Protocol, method: Method, images: Images, num_classes: int, seed: int, device: torch.device
    ) -> None:
        self.protocol, self.method, self.num_classes, self.seed = protocol, method, num_classes, seed
        self.device, self.counts = device, count_classes(images.train_labels)
        self.steps = len(images.train_labels) // protocol.batch_size
        if not self.steps:
            raise ValueError(f"{len(images.train_labels)} images are less than one batch of {protocol.batch_size}")
        self.labels = torch.from_numpy(images.train_labels).to(device)
        self.statistics = statistics(num_classes, device)
        plain = torch.from_numpy(images.train).to(device)
        self.padded = pad_images(plain, protocol.padding)
        #: The epoch's version of each image, where an augmentation makes one, and the weight of this step's mix: both
        #: keep their place on the device, so that a CUDA graph finds them.
        self.versions = torch.empty_like(plain) if protocol.augment else None
        self.weight = torch.ones((), device=device)

    def epoch(self, epoch: int) -> Iterator[Tensor]:
        """The (B, 4) int64 draw of each step, see :func:`epoch_draws`; (2B, 4) with a second branch. What
        :meth:`batch` makes of a draw holds until the next one."""
        weights = self.mixing_weights(epoch)
        for step, draw in enumerate(self._draws(epoch).to(self.device)):
            self.weight.copy_(weights[step])
            yield draw

    def mixing_weights(self, epoch: int) -> Tensor:
        """(S,) weight of the first image in each step's mix; 1 without Mixup."""
        if not self.protocol.mixup:
            return torch.ones(self.steps, device=self.device)
        return mixing_weights(self.steps, self.protocol.mixup, self.seed, epoch).to(self.device)

    def _draws(self, epoch: int) -> Tensor:
        size, padding = self.protocol.batch_size, self.protocol.padding
        labels = self.labels.cpu().numpy()
        if self.method.sampler:
            shares = self.counts.astype(float) ** SAMPLERS[self.method.sampler]
            draws = class_draws(labels, shares / shares.sum(), self.steps, size, padding, (self.seed, epoch))
        else:
            draws = epoch_draws(len(labels), size, padding, self.seed, epoch)
        if self.method.loss == "bbn":
            reverse = reversed_probs(self.counts)
            more = class_draws(labels, reverse, self.steps, size, padding, (self.seed, epoch, 1))
            draws = torch.cat([draws, more], dim=1)
        if self.versions is not None:
            rows = draws.flatten(0, 1).to(self.device)
            crops = crop_and_flip(self.padded, rows, padding).cpu().numpy()
            new = augmented(crops, self.seed, epoch)
            self.versions[rows[:, 0]] = torch.from_numpy(new).to(self.device)
        return draws

    def batch(self, draw: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) images and (B,) labels of a (B, 4) draw; images are mixed where the protocol mixes them."""
        if self.versions is None:
            images = crop_and_flip(self.padded, draw, self.protocol.padding)
        else:
            images = self.versions[draw[:, 0]]
        normal = normalize(images, self.statistics)
        if self.protocol.mixup:
            normal = mixed(normal, self.weight)
        return normal, self.labels[draw[:, 0]]

    def targets(self, labels: Tensor, weight: Tensor) -> Tensor:
        """What a loss takes: the (B,) labels themselves, or (B, C) class probabilities under Mixup.

        Args:
            labels: of a batch.
            weight: 0-dim, of its mix.
        """
        return mixed_labels(labels, weight, self.num_classes) if self.protocol.mixup else labels
