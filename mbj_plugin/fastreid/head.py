"""MBJHead: fast-reid's EmbeddingHead with memories beside its classifier."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from fastreid.modeling.heads import REID_HEADS_REGISTRY, EmbeddingHead
from torch import Tensor, nn

from mbj_plugin.fastreid.config import read_settings
from mbj_plugin.fastreid.schedule import Schedule
from mbj_plugin.losses import FeatureMemoryLoss, PrototypeMemoryLoss
from mbj_plugin.settings import Memories


@REID_HEADS_REGISTRY.register()
class MBJHead(EmbeddingHead):
    """EmbeddingHead whose classifier weights and post-bottleneck features go through Memory-based Jitter in training.

    What it returns is what EmbeddingHead returns. The memory loss waits in :attr:`pending` until the model's forward
    hook (:mod:`mbj_plugin.fastreid.collect`) adds it to the loss dict as ``loss_mbj``. Evaluation touches no memory.

    Shapes: B batch, C classes (MODEL.HEADS.NUM_CLASSES), D embedding dimension after the bottleneck.

    Args:
        cfg: fast-reid's config; MODEL.MBJ says what is remembered.

    Raises:
        ValueError: for an unknown key or a value out of range in MODEL.MBJ.
    """

    memories: Mapping[str, FeatureMemoryLoss | PrototypeMemoryLoss]  # an nn.ModuleDict

    def __init__(self, cfg) -> None:
        super().__init__(cfg)
        self.settings = read_settings(cfg)
        self.schedule = Schedule.from_config(cfg)
        num_classes, dim = self.weight.shape
        # Without ETA it stays empty, and the head is EmbeddingHead to the last bit.
        memories = nn.ModuleDict()
        if self.settings.eta != 0:
            memories = Memories(self.settings, None, dim, num_classes=num_classes)
        self.add_module("memories", memories)
        self.start = 0
        self.pending: list[Tensor] = []
        self.collecting = False
        self._neck: Tensor | None = None
        if self.memories:
            self.bottleneck.register_forward_hook(self._keep_neck)

    def _keep_neck(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        # With NECK_FEAT `before` EmbeddingHead returns the feature in front of the bottleneck; its classifier, and so
        # the memory, works on the one behind it.
        if self.training:
            self._neck = output[..., 0, 0]

    def describe_training_set(self, class_counts: Tensor, iters_per_epoch: int) -> None:
        """What the head must know of the training set.

        Args:
            class_counts: (C,) training images per class.
            iters_per_epoch: iterations of one epoch, for MODEL.MBJ.START.
        """
        if not self.memories:  # a baseline can keep the START of a longer run
            return
        self.start = self.schedule.start_iteration(self.settings.start, iters_per_epoch)
        for memory in self.memories.values():
            memory.set_class_counts(class_counts)
            memory.start = self.start

    def begin_at(self, iteration: int) -> None:
        """Training begins at an iteration of the run: START is one of the run, but a memory counts its own calls. A run
        that was begun without MBJ has made none, one that goes on with larger batches more than iterations."""
        for memory in self.memories.values():
            # The step stays as it is: it also says whether there is a momentum yet.
            memory.start = max(self.start - iteration + int(memory.step), 0)

    def forward(self, features: Tensor, targets: Tensor | None = None):
        """As EmbeddingHead.

        Args:
            features: (B, F, H, W) of the backbone.
            targets: (B,) one label per image, in training.

        Raises:
            ValueError: for targets that are not one label per image, or a memory without class counts.
            RuntimeError: where nobody collected the last memory loss.
        """
        if not self.training or not self.memories:
            return super().forward(features, targets)
        if targets is None or targets.ndim != 1:
            shape = None if targets is None else tuple(targets.shape)
            raise ValueError(
                f"MBJHead needs one label per image, targets of shape (batch,), got {shape}. For multi-label targets "
                "set MODEL.HEADS.NAME to EmbeddingHead or to the project's own head."
            )
        outputs = super().forward(features, targets)
        neck, self._neck = self._neck, None
        # PreciseBN and the teachers of a Distiller run in train mode without grad: nothing of theirs is remembered.
        if torch.is_grad_enabled():
            assert neck is not None  # the bottleneck's hook kept it
            self._add_loss(neck, targets)
        return outputs

    def _add_loss(self, neck: Tensor, targets: Tensor) -> None:
        if self.pending and not self.collecting:
            raise RuntimeError(
                "nobody collected the last memory loss of MBJHead, so it trained nothing. Build the model with "
                "fastreid's build_model, or call mbj_plugin.fastreid.collect_losses(model) once on your own model."
            )
        assert isinstance(self.memories, Memories)
        if any(memory.probs is None for memory in self.memories.values()):
            raise ValueError(
                "MBJHead does not know the class counts of the training set: train with fastreid's SimpleTrainer or "
                "AMPTrainer, or call mbj_plugin.fastreid.prepare(model, data_loader) before your own loop."
            )
        inputs = {"prototype": lambda: (neck, self.weight), "feature": lambda: self._classifier(neck)}
        self.pending.append(self.memories(targets, inputs))

    def _classifier(self, neck: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) inputs and (C, D) weight whose product is the head's ``pred_class_logits``: scale * cosine for the
        margin layers, whose margin acts on the batch only, and scale * dot product for Linear."""
        if type(self.cls_layer).__name__ == "Linear":
            return neck, self.weight * self.cls_layer.s
        return F.normalize(neck.float()), F.normalize(self.weight) * self.cls_layer.s
