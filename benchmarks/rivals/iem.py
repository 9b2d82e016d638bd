"""IEM* (Zhu and Yang, "Inflated Episodic Memory with Region Self-Attention for Long-Tailed Visual Recognition", CVPR
2020) with the global feature only, as the paper of Memory-based Jitter compares it.

There is no public code. What we had of the description is its abstract and what the paper of Memory-based Jitter says
of it. They say that each category has a memory of its own, of several features instead of one prototype; that a memory
is of keys and values, and keeps the most discriminative features of its category; that memories are updated
independently of each other; and that they augment a convolutional network, which is trained with them. So this is no
passenger: the features feel the memory.

What they leave open, and what was chosen here, on no measurement:

- how a memory is read: keys and values are the unit features themselves. A query attends to the slots of each category,
  softmax of scaled cosines, and what it reads votes for the category by its own scaled cosine;
- how the vote augments the network: it is added to the logits of the linear classifier, in training and in the test,
  and one cross-entropy trains both. Gradients reach the query, not what is remembered;
- what is most discriminative: the highest probability of the right category at the time of writing. It fades with each
  image of the category, so that no feature of an early network stays for ever;
- how many slots: as many in every category, so the rarer a category, the more slots there are for each of its images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mbj_plugin.timm.models import CifarResNet

SLOTS = 20  # of a category
SCALE = 16.0  # of the cosines
FADING = 0.95  # what each image of a category leaves of the confidence of those before


class EpisodicMemory(nn.Module):
    """A CIFAR ResNet beside a memory for each category, which is part of its state.

    Args:
        model: the network; its classifier stays.
        slots: K, of each category.
    """

    keys: Tensor
    confidence: Tensor

    def __init__(self, model: CifarResNet, slots: int = SLOTS) -> None:
        super().__init__()
        self.model, self.num_classes = model, model.num_classes
        self.register_buffer("keys", torch.zeros(model.num_classes, slots, model.num_features))
        self.register_buffer("confidence", torch.zeros(model.num_classes, slots))  # 0 = empty
        self.seen: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        """(B, C) logits of (B, 3, H, W) images."""
        features = self.model.forward_head(self.model.forward_features(images), pre_logits=True)
        if self.training:
            self.seen = features.detach()
        with torch.autocast(features.device.type, enabled=False):
            # A copy: the memory is written before the backward pass.
            votes = read_memory(features.float(), self.keys.clone(), self.confidence)
            return self.model.fc(features.float()) + votes

    def remember(self, labels: Tensor, confidence: Tensor) -> None:
        """Write the batch of the last forward pass; arguments as of :func:`write_memory`."""
        assert self.seen is not None
        written = write_memory(self.keys, self.confidence, self.seen.float(), labels, confidence)
        self.keys.copy_(written[0])
        self.confidence.copy_(written[1])


class EpisodicLoss(nn.Module):
    """Cross-entropy against what was remembered before; then, in training, the batch is remembered."""

    def __init__(self, model: EpisodicMemory) -> None:
        super().__init__()
        self.remember = model.remember

    def forward(self, output: Tensor, labels: Tensor) -> Tensor:
        if self.training:
            self.remember(labels, output.detach().float().softmax(1).gather(1, labels[:, None])[:, 0])
        return F.cross_entropy(output, labels)


def read_memory(features: Tensor, keys: Tensor, confidence: Tensor, scale: float = SCALE) -> Tensor:
    """(B, C) votes: s cos(x, k) of the keys k of a category, weighed by their softmax; 0 where it has none.

    Args:
        features: (B, D) queries x.
        keys: (C, K, D) unit rows, zeros in empty slots.
        confidence: (C, K), 0 in empty slots.
        scale: s.
    """
    cosines = scale * torch.einsum("bd,ckd->bck", F.normalize(features, dim=1), keys)
    weights = cosines.masked_fill(confidence == 0, -1e4).softmax(2)
    return (weights * cosines).sum(2)


@torch.no_grad()
def write_memory(
    keys: Tensor, confidence: Tensor, features: Tensor, labels: Tensor, probs: Tensor, fading: float = FADING
) -> tuple[Tensor, Tensor]:
    """(C, K, D) keys and (C, K) confidence after a batch: of the rows there are and those of the batch, each category
    keeps its K most confident ones. Those there are have faded once for each image of their category.

    Args:
        keys: (C, K, D) as of :func:`read_memory`.
        confidence: (C, K).
        features: (B, D) of the batch; rows that are not finite are not written.
        labels: (B,) categories.
        probs: (B,) probability that the network gives to the right category.
        fading: 0 to 1.
    """
    classes, slots, _ = keys.shape
    of_class = labels == torch.arange(classes, device=labels.device)[:, None]
    faded = confidence * fading ** of_class.sum(1, keepdim=True)
    finite = features.isfinite().all(1) & probs.isfinite()
    probs = torch.where(finite, probs.clamp(min=torch.finfo(probs.dtype).tiny), 0.0)
    candidates = torch.cat([faded, torch.where(of_class, probs, -1.0)], dim=1)
    kept, chosen = candidates.topk(slots, dim=1)
    new = F.normalize(torch.where(finite[:, None], features, 0.0), dim=1)
    rows = torch.cat([keys, new.expand(classes, -1, -1)], dim=1)
    return rows.gather(1, chosen[..., None].expand_as(keys)), kept
