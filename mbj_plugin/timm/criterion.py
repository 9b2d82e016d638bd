"""The criterion: any batch loss plus eta * L_memory, which trains a classifier of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mbj_plugin.diagnostics.step_meter import StepMeter
from mbj_plugin.functional import counts_tensor
from mbj_plugin.memories import Memories
from mbj_plugin.settings import NO_OWN_CLASSIFIER, MBJSettings
from mbj_plugin.timm.head import Heads, attach_head, detach_head, same_map

PROTOTYPES = ("batch", "memory")


class CrossEntropy(nn.Module):
    """Cross-entropy in which, as everywhere in MBJ, a label of -1 is unlabelled; 0 where a whole batch is."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        loss = F.cross_entropy(output, target, ignore_index=-1)
        return loss if target.ndim == 2 else torch.where((target >= 0).any(), loss, torch.zeros_like(loss))


class MBJLoss(nn.Module):
    """L_total = L_batch + eta * L_memory (paper, Eq. 2), called like any criterion: ``loss(output, target)``.

    "MBJ combines both of them to learn the classifier": the features never feel the memory of features. L_batch trains
    the features through a *batch classifier*, exactly as without MBJ; L_batch on detached features and eta * L_memory
    train a *memory classifier*, the model's own layer, which evaluation, checkpoints and an average of the model use.
    Until L_memory counts both hold the same numbers. Call :meth:`bind` once, so that it reads the classifier;
    ``MBJTask`` does. In evaluation mode, and where grad is off, it is the batch loss alone.

    Args:
        class_counts: (C,) training images per class; a ``dict`` or ``Counter`` by class index will do.
        base: the batch loss, called once for each classifier; cross-entropy by default.
        memory: "feature" (MBJ-F), "prototype" (MBJ-W) or "both" (MBJ-WF).
        classifier: "own" as above; "shared": one classifier for both losses, to whose changes the features answer.
            Prototypes alone train no classifier, so there both are the same.
        classifier_loss: the batch loss of a classifier of the memory's own; None = ``base``.
        prototypes: with "both" and two classifiers, whose weights the prototype memory holds: those of the "batch"
            classifier, which trains the features, or of the "memory" classifier.
        size, eta, beta, norm, ramp, interval, momentum, scale, margin, prior_correction, sample: of the memories, see
            :class:`mbj_plugin.settings.MBJSettings`; ``norm`` is the paper's here, "sum".
        start: calls before the memory loss counts.
        seed: of the draws.
        smoothing: label smoothing that soft targets carry (timm's Mixup puts it there). The memory does without: else
            head images would enter under the name of every tail class.

    Raises:
        ValueError: for a value out of range.

    Example:
        >>> import timm
        >>> model = timm.create_model("resnet32_cifar", num_classes=3, depth=8, width=4)
        >>> criterion = MBJLoss([90, 30, 10], norm="max", start=1000).bind(model)
        >>> images, target = torch.zeros(4, 3, 32, 32), torch.tensor([0, 1, 2, 2])
        >>> loss = criterion(model(images), target)
        >>> loss.backward()  # both rows of the rarest class are remembered
        >>> {kind: int(memory.bank.filled) for kind, memory in criterion.memories.items()}
        {'feature': 2}
    """

    def __init__(
        self,
        class_counts: Tensor | Sequence[int] | Mapping[int, int],
        base: nn.Module | Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        memory: str = "feature",
        classifier: str = "own",
        classifier_loss: nn.Module | Callable[[Tensor, Tensor], Tensor] | None = None,
        prototypes: str = "batch",
        size: int | None = None,
        eta: float | None = None,
        beta: float = 1.5,
        norm: str = "sum",
        start: int = 0,
        ramp: int = 0,
        interval: int = 1,
        momentum: float = 0.0,
        scale: float = 16.0,
        margin: float = 0.2,
        prior_correction: bool = False,
        sample: int | None = 0,
        seed: int = 0,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if prototypes not in PROTOTYPES:
            raise ValueError(f"prototypes must be of one of {PROTOTYPES}, got {prototypes!r}")
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing must be in [0, 1), got {smoothing}")
        self.settings = MBJSettings(
            memory=memory,
            classifier=classifier,
            size=size,
            eta=eta,
            beta=beta,
            norm=norm,
            ramp=ramp,
            interval=interval,
            momentum=momentum,
            scale=scale,
            margin=margin,
            prior_correction=prior_correction,
            sample=sample or 0,
            seed=seed,
        )
        self.own_classifier = classifier == "own" and memory != "prototype"
        if classifier_loss is not None and not self.own_classifier:
            raise ValueError(NO_OWN_CLASSIFIER)
        self.smoothing, self.start = smoothing, start
        self.base = base if base is not None else CrossEntropy()
        self.classifier_loss = classifier_loss if classifier_loss is not None else self.base
        self.prototypes_of_batch = prototypes == "batch"
        self.class_counts = counts_tensor(class_counts)
        # Of one dimension until bind knows how many there are.
        self.memories = Memories(self.settings, self.class_counts, 1, start)
        self.heads: Heads | None = None
        self._checked = False
        #: L_batch (the memory classifier's) and eta * L_memory of the last call, detached, for logs.
        self.parts: dict[str, Tensor] = {}
        #: Counts over the steps where diagnostics are on; see :mod:`mbj_plugin.timm.diagnostics`.
        self.meter: StepMeter | None = None

    def bind(self, model: nn.Module) -> MBJLoss:
        """Read the classifier of ``model`` from now on, and put a second one beside it where the memory has its own.

        A loss that was bound before keeps its memory where the features are as long as before.

        Args:
            model: a timm model, before it is compiled or wrapped, and before the optimizer is made: a batch classifier
                has parameters of its own.

        Returns:
            self.

        Raises:
            ValueError: where no classifier is found, or its classes are not those of ``class_counts``.
        """
        heads = attach_head(model, self.own_classifier)
        if heads.num_classes != len(self.class_counts):
            raise ValueError(
                f"the model has {heads.num_classes} classes, the class counts {len(self.class_counts)}: "
                f"set --num-classes {len(self.class_counts)}, or give one count per class of the model"
            )
        self.heads, self._checked = heads, False
        if any(bank.dim != heads.dim for bank in self.memories.banks):
            self.memories = Memories(self.settings, self.class_counts, heads.dim, self.start)
        self.memories.to(heads.device)
        return self

    def unbind(self, model: nn.Module) -> nn.Module:
        """Make the model stock again, with the memory classifier as its classifier; the memory stays in this loss."""
        self.heads = None
        detach_head(model)
        return model

    def __getstate__(self) -> dict[str, Any]:
        # A copy does not know the model's copy: it must be bound to it.
        return {**self.__dict__, "heads": None, "parts": {}, "meter": None}

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of (B, C) logits and (B,) classes or (B, C) class probabilities.

        Its value is L_total of Eq. 2 for the memory classifier; before the start that is L_batch.
        """
        batch_loss = self.base(output, target)
        if not (self.training and torch.is_grad_enabled()):
            return batch_loss
        if self.heads is None:
            raise ValueError("MBJLoss does not know the model: call loss.bind(model) once, or train with MBJTask")
        features, memory_output = self.heads.take()
        self._check_once(output, features)
        if memory_output is not None:
            # The value is Eq. 2's, the memory classifier's; the gradient is of both classifiers' batch losses.
            batch_loss = batch_loss - batch_loss.detach() + self.classifier_loss(memory_output, target)
        memory_loss = self._memory_loss(features, target)
        self.parts = {"loss_batch": batch_loss.detach(), "loss_memory": memory_loss.detach()}
        if self.meter is not None:
            self.meter.close_step(**self.parts)
        return batch_loss + memory_loss

    def _memory_loss(self, features: Tensor, target: Tensor) -> Tensor:
        assert self.heads is not None
        if target.ndim == 2 and self.smoothing:
            target = (target - self.smoothing / target.shape[1]) / (1 - self.smoothing)
        if self.meter is not None:
            self.meter.count_positives(target, self.memories.banks)
        heads = self.heads
        return self.memories(
            target,
            {
                "feature": lambda: (features, *heads.affine()),
                "prototype": lambda: (features, heads.affine(batch=self.prototypes_of_batch)[0]),
            },
        )

    def _check_once(self, output: Tensor, features: Tensor) -> None:
        """What the model returned must be what its classifier computes: else L_memory would train something else."""
        if self._checked or torch.compiler.is_compiling():
            return
        if output.is_cuda and torch.cuda.is_current_stream_capturing():  # it waits for the device
            return
        if not torch.isfinite(output).all():  # fp16 may overflow in the first steps
            return
        self._checked = True
        assert self.heads is not None
        if not same_map(*self.heads.affine(batch=True), features, output):
            raise ValueError(
                "the model's output is not what its classifier computes from its input (it combines several heads, "
                "scales its logits, or its classifier is not linear in its input): MBJ does not know such a model, "
                "take one with a plain classifier"
            )
