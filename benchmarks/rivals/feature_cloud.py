"""Feature Cloud (Liu et al., CVPR 2020, https://arxiv.org/abs/2002.10826) as a layer that a config can name once this
module is imported.

``MODEL.HEADS.CLS_LAYER: FeatureCloud`` is CosFace (``CosSoftmax``, with MODEL.HEADS.SCALE and MARGIN) in which a
feature of a tail class is not a point but a cloud: as wide about its class's centre as the head classes about theirs.

What the public description says, and this does:

- The angle theta between a feature and the centre of its class has a mean and a variance in each class; those of
  tail classes vary less.
- A tail class gets the variance that it lacks, sigma_head^2 - sigma_k^2: delta ~ N(0, sigma_head^2 - sigma_k^2) is
  added to theta, so that the angle keeps its mean and has the head's variance. The loss is CosFace on theta + delta.

What it leaves open, and what was chosen:

- The centre is the classifier's weight of the class, which is what CosFace pulls features to.
- Mean and variance are those of the recent angles: sums that lose a tenth each time that the class is seen, over all
  ranks. The loss comes first, with the statistics of the steps before it; two angles make a variance, which is that
  of the class without bias (some 19 angles count, so it would be 5 % too small).
- Head classes are those with more training images than the mean class; sigma_head^2 is the mean of their variances.
- Only the angle to the feature's own class is moved. An angle that passes the centre comes out on its other side.

Statistics are of one run: they are in no checkpoint, so MODEL.WEIGHTS brings none, and a resumed run collects new ones.
"""

from __future__ import annotations

import functools
import hashlib
import math
from typing import Any

import torch
import torch.distributed as dist
from fastreid.engine.train_loop import SimpleTrainer
from fastreid.layers import any_softmax
from fastreid.utils import comm
from torch import Tensor, nn

from mbj_plugin.fastreid.counts import class_counts
from mbj_plugin.sampling import counter_uniform, rank_and_world

KEPT = 0.9  # of a class's sums, each time that it is seen


class FeatureCloud(any_softmax.CosSoftmax):
    """CosFace whose tail features are clouds; made by fast-reid's EmbeddingHead and what derives from it.

    Args:
        num_classes: C.
        scale: of the cosines, > 0.
        margin: of CosFace, from 0 to 1.
    """

    sums: Tensor  # (4, C): of the angles' weights, of these times angle, times its square, and of the weights' squares
    step: Tensor
    seed: Tensor
    is_head: Tensor

    def __init__(self, num_classes: int, scale: float, margin: float) -> None:
        super().__init__(num_classes, scale, margin)
        self.register_buffer("sums", torch.zeros(4, num_classes, dtype=torch.float64), persistent=False)
        self.register_buffer("step", torch.zeros((), dtype=torch.long), persistent=False)
        self.register_buffer("seed", torch.zeros((), dtype=torch.long), persistent=False)
        self.register_buffer("is_head", torch.zeros(num_classes, dtype=torch.bool), persistent=False)
        self.counted = False

    def set_class_counts(self, class_counts: Tensor) -> None:
        """Say which classes are head classes.

        Args:
            class_counts: (C,) training images per class.

        Raises:
            ValueError: where all classes have as many.
        """
        counts = class_counts.to(self.is_head.device)
        is_head = counts > counts[counts > 0].double().mean()
        if not is_head.any():
            raise ValueError(
                "CLS_LAYER FeatureCloud widens the tail to the width of the head, but all classes of the training set "
                "have the same number of images: set MODEL.HEADS.CLS_LAYER to CosSoftmax"
            )
        self.is_head.copy_(is_head)
        self.counted = True

    def cloud_variances(self) -> Tensor:
        """(C,) variance of delta in each class, in rad^2: 0 in head classes, and before there are two angles."""
        number = self.sums[0].clamp(min=1)
        mean, square, squared_weights = self.sums[1] / number, self.sums[2] / number, self.sums[3] / number**2
        # Of n angles alike the last factor is (n - 1) / n.
        known = (self.sums[0] > 1) & (squared_weights < 1)
        variance = torch.where(known, (square - mean**2).clamp(min=0) / (1 - squared_weights), 0.0)
        heads = self.is_head & known
        head_variance = (variance * heads).sum() / heads.sum().clamp(min=1)
        return torch.where(known & ~self.is_head, (head_variance - variance).clamp(min=0), 0.0)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(B, C) scaled logits of CosFace on the moved angles.

        Args:
            logits: (B, C) cosines.
            targets: (B,) class of each; -1 = none.

        Raises:
            ValueError: where nobody has counted the training images.
        """
        # As with MBJ's memories: what runs in train mode without grad (PreciseBN, teachers) is left as it is.
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(logits, targets)
        if not self.counted:
            raise ValueError(
                "FeatureCloud does not know the class counts of the training set: train with fastreid's SimpleTrainer "
                "or AMPTrainer, or call set_class_counts before your own loop."
            )
        own = targets.clamp(min=0)[:, None]
        cosine = logits.gather(1, own).float().squeeze(1)
        moved = torch.where(targets >= 0, _turned(cosine, self._draw(targets)), cosine)
        self._remember(cosine.detach(), targets)
        return super().forward(logits.scatter(1, own, moved[:, None].to(logits.dtype)), targets)

    def _draw(self, targets: Tensor) -> Tensor:
        """(B,) angle that each feature is moved by."""
        rank, _ = rank_and_world()
        normal = _normal(counter_uniform(self.seed, self.step, len(targets), stream=rank))
        return normal * self.cloud_variances().sqrt()[targets.clamp(min=0)].float()

    @torch.no_grad()
    def _remember(self, cosine: Tensor, targets: Tensor) -> None:
        angle = cosine.double().clamp(-1, 1).acos()
        kept = (targets >= 0) & torch.isfinite(angle)
        rows = torch.where(kept, torch.stack([torch.ones_like(angle), angle, angle**2, torch.ones_like(angle)]), 0.0)
        new = torch.zeros_like(self.sums).index_add_(1, targets.clamp(min=0), rows)
        if rank_and_world()[1] > 1:
            dist.all_reduce(new)
        kept_sums = torch.cat([KEPT * self.sums[:3], KEPT**2 * self.sums[3:]])
        self.sums.copy_(torch.where(new[0] > 0, kept_sums + new, self.sums))
        self.step.add_(1)


def _normal(uniform: Tensor) -> Tensor:
    """Normal numbers of fp32 uniform ones in [0, 1), finite at both ends: in fp32, 1 - 2^-24 and half a step are 1."""
    return torch.erfinv(2 * (uniform + 2.0**-25).clamp(max=1 - 2.0**-24) - 1) * math.sqrt(2)


def _turned(cosine: Tensor, delta: Tensor) -> Tensor:
    """cos(theta + delta) of cos(theta); exactly the same where delta is 0, and with a finite gradient everywhere."""
    sine = (1 - cosine**2).clamp(min=1e-6).sqrt()
    return torch.where(delta == 0, cosine, cosine * delta.cos() - sine * delta.sin())


def prepare(model: nn.Module, data_loader: Any) -> None:
    """Give each layer of a model the counts of the training set, and a seed of its own made of the run's."""
    clouds = [module for module in model.modules() if isinstance(module, FeatureCloud)]
    run = comm.all_gather(torch.initial_seed())[0] if clouds else None
    for number, cloud in enumerate(clouds):
        cloud.set_class_counts(class_counts(data_loader.dataset, cloud.num_classes))
        digest = hashlib.blake2b(f"{run} {number} cloud".encode(), digest_size=8).digest()
        cloud.seed.fill_(int.from_bytes(digest, "big", signed=True))


def register() -> None:
    """Let MODEL.HEADS.CLS_LAYER name it, which EmbeddingHead looks up in ``any_softmax``, and fast-reid's trainers
    prepare it."""
    any_softmax.FeatureCloud = FeatureCloud
    any_softmax.__all__.append("FeatureCloud")
    stock = SimpleTrainer.__init__

    @functools.wraps(stock)
    def init(self: SimpleTrainer, model: nn.Module, data_loader: Any, *args: Any, **kwargs: Any) -> None:
        prepare(model, data_loader)
        stock(self, model, data_loader, *args, **kwargs)

    SimpleTrainer.__init__ = init


register()
