"""The criterion: any batch loss plus eta * L_memory, which trains a classifier of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mbj_plugin.batch_losses import CrossEntropy, create_loss
from mbj_plugin.checks import BELOW_1, Counts, Range, check_logits, counts_tensor
from mbj_plugin.settings import MBJSettings, Memories
from mbj_plugin.timm.classifiers import BATCH_CLASSIFIER, same_map
from mbj_plugin.timm.clip import ClipParameters
from mbj_plugin.timm.head import Heads, attach_head, beside, detach_head

_logger = logging.getLogger("mbj_plugin")
BatchLoss = nn.Module | Callable[[Tensor, Tensor], Tensor]


class MBJLoss(nn.Module):
    """L_total = L_batch + eta * L_memory (paper, Eq. 2), called like any criterion: ``loss(output, target)``.

    "MBJ combines both of them to learn the classifier": the features never feel the memory of features. L_batch trains
    the features through a *batch classifier*, exactly as without MBJ; L_batch on detached features and eta * L_memory
    train a *memory classifier*, the model's own layer, which evaluation and stock timm use. Until L_memory counts both
    hold the same numbers (not with a ``classifier_loss``, which parts them from the first step on). Call :meth:`bind`
    once, so that it reads the classifier; ``MBJTask`` does. In evaluation mode, and where grad is off, it is the batch
    loss alone. :func:`mbj_plugin.timm.head.evaluate_classifiers` gives the logits of both.

    ``state_dict`` holds the memory and the batch classifier: save those of model, loss and optimizer, load them in any
    order into a bound loss and go on exactly. Weights that are loaded into the model alone are those of both
    classifiers before the first step, and afterwards of the memory classifier: the batch classifier stays.

    Args:
        class_counts: (C,) training images per class; a ``dict`` or ``Counter`` by class index will do.
        base: the batch loss, called once for each classifier; cross-entropy by default.
        settings: of the memories and the classifier; by default those of ``--mbj``. Its ``start`` is not read here.
        start: calls before the memory loss counts.
        smoothing: label smoothing that soft targets carry (timm's Mixup puts it there). The memory does without: else
            head images would enter under the name of every tail class.

    Raises:
        ValueError: for a value out of range.

    Example:
        >>> import timm
        >>> model = timm.create_model("resnet32_cifar", num_classes=3, depth=8, width=4)
        >>> criterion = MBJLoss([90, 30, 10], start=1000).bind(model)
        >>> images, target = torch.zeros(4, 3, 32, 32), torch.tensor([0, 1, 2, 2])
        >>> loss = criterion(model(images), target)
        >>> loss.backward()  # both rows of the rarest class are remembered
        >>> {kind: int(memory.bank.filled) for kind, memory in criterion.memories.items()}
        {'feature': 2}
    """

    def __init__(
        self,
        class_counts: Counts,
        base: BatchLoss | None = None,
        settings: MBJSettings | None = None,
        *,
        start: int = 0,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.settings = settings or MBJSettings()
        if not isinstance(self.settings, MBJSettings):
            raise ValueError(f"settings must be MBJSettings(...), got {settings!r}")
        if base is not None and not callable(base):
            raise ValueError(f"base must be a loss that is called as loss(logits, target), got {base!r}")
        self.own_classifier = self.settings.classifier == "own" and self.settings.memory != "prototype"
        self.smoothing, self.start = Range(0, BELOW_1).checked("smoothing", smoothing), start
        self.base = base if base is not None else CrossEntropy()
        own_loss = self.settings.classifier_loss
        self.classifier_loss = self.base if own_loss is None else create_loss(own_loss, class_counts)
        self.class_counts = counts_tensor(class_counts)
        # Of one dimension until bind knows how many there are.
        self.memories = Memories(self.settings, self.class_counts, 1, start)
        self.heads: Heads | None = None
        self._checked = False
        self._versions: list[tuple[int, int]] | None = []
        self._parts: dict[str, Tensor] = {}
        self.register_state_dict_post_hook(_save_batch_classifier)
        self.register_load_state_dict_pre_hook(_load_batch_classifier)

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
        self.heads, self._checked, self._versions = heads, False, []
        if any(bank.dim != heads.dim for bank in self.memories.banks):
            self.memories = Memories(self.settings, self.class_counts, heads.dim, self.start)
        self.to(heads.device)
        return self

    def unbind(self, model: nn.Module) -> nn.Module:
        """Make the model stock again, with the memory classifier as its classifier; the memory stays in this loss."""
        self.heads = None
        detach_head(model)
        return model

    def clip_parameters(self, model: nn.Module, exclude_head: bool = False) -> ClipParameters:
        """The parameters that a run without MBJ clips, of the model that this loss is bound to, wrapped or not.

        The norm of ``model.parameters()`` has the memory's gradient in it: clipping by it takes from the features. Give
        these to ``torch.nn.utils.clip_grad_norm_``, or to :func:`mbj_plugin.timm.clip.dispatch_clip_grad`, which clips
        the memory classifier as well, as if it were the only one.
        """
        return ClipParameters(model, self._bound(), exclude_head)

    def _bound(self) -> Heads:
        if self.heads is None:
            raise ValueError("MBJLoss does not know the model: call loss.bind(model) once, or train with MBJTask")
        return self.heads

    def __getstate__(self) -> dict[str, Any]:
        # A copy does not know the model's copy: it must be bound to it.
        return {**self.__dict__, "heads": None, "_parts": {}}

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of (B, C) logits and a target, see :func:`mbj_plugin.checks.check_target`.

        Its value is L_total of Eq. 2 for the memory classifier; :attr:`parts` has what it is made of.
        """
        check_logits(output, target, soft=True)
        batch_loss = self.base(output, target)
        if not (self.training and torch.is_grad_enabled()):
            return batch_loss
        features, memory_output = self._bound().pop_recorded()
        self._check_once(output, features)
        parts = {"loss_batch": batch_loss}
        if memory_output is not None:
            parts["loss_classifier"] = self.classifier_loss(memory_output, target)
            # The value is Eq. 2's, the memory classifier's; the gradient is of both classifiers' batch losses.
            batch_loss = beside(parts["loss_classifier"], batch_loss, True)
        parts["loss_memory"] = memory_loss = self._memory_loss(features, target)
        self._parts = parts
        return batch_loss if self._waits() else batch_loss + memory_loss

    @property
    def parts(self) -> dict[str, Tensor]:
        """Of the last call, detached, for logs: "loss_batch" of the features, which is that of a run without MBJ,
        "loss_classifier", the memory classifier's batch loss where it is another, and "loss_memory", eta * L_memory."""
        return {name: part.detach() for name, part in self._parts.items()}

    def _waits(self) -> bool:
        """Whether the memory loss is 0 and what it trains is trained by the batch loss too."""
        return self.own_classifier and not any(memory.started for memory in self.memories.values())

    def _memory_loss(self, features: Tensor, target: Tensor) -> Tensor:
        if target.ndim == 2 and self.smoothing:
            target = (target - self.smoothing / target.shape[1]) / (1 - self.smoothing)
        heads = self._bound()
        return self.memories(
            target,
            {
                "feature": lambda: (features, *heads.affine()),
                "prototype": lambda: (features, heads.affine(batch=True)[0]),
            },
        )

    def _check_once(self, output: Tensor, features: Tensor) -> None:
        """What the model returned must be what its classifier computes: else L_memory would train something else."""
        if torch.compiler.is_compiling():
            return
        self._check_optimizer()
        if self._checked:
            return
        if output.is_cuda and torch.cuda.is_current_stream_capturing():  # it waits for the device
            return
        if not torch.isfinite(output).all():  # fp16 may overflow in the first steps
            return
        self._checked = True
        if not same_map(*self._bound().affine(batch=True), features, output):
            raise ValueError(
                "the model's output is not what its classifier computes from its input (it combines several heads, "
                "scales its logits, or its classifier is not linear in its input): MBJ does not know such a model, "
                "take one with a plain classifier"
            )

    def _check_optimizer(self) -> None:
        """Warn, once, where a step has moved one of the two classifiers: the optimizer was made before bind."""
        if self._versions is None:
            return
        pairs = self._bound().parameter_pairs
        versions = [(own._version, batch._version) for own, batch in pairs]
        before, self._versions = self._versions or versions, versions
        moved = [(new[0] != old[0], new[1] != old[1]) for old, new in zip(before, versions, strict=True)]
        if any(map(any, moved)) or not pairs:
            self._versions = None  # seen once
        if any(own and not batch for (own, batch), (_, p) in zip(moved, pairs, strict=True) if p.requires_grad):
            _logger.warning("The batch classifier does not move: call loss.bind(model) before the optimizer is made.")


def _save_batch_classifier(loss: MBJLoss, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    if loss.heads is not None and loss.own_classifier:
        for number, layer in enumerate(loss.heads.batch_layers):
            layer.state_dict(destination=state, prefix=f"{prefix}{BATCH_CLASSIFIER}.{number}.")


def _load_batch_classifier(loss: MBJLoss, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    prefix = f"{prefix}{BATCH_CLASSIFIER}."
    saved = {key.removeprefix(prefix): state.pop(key) for key in list(state) if key.startswith(prefix)}
    if bool(saved) != loss.own_classifier:
        raise ValueError(
            f"the state has {'a' if saved else 'no'} batch classifier, this loss has --mbj-classifier "
            f"{'own' if loss.own_classifier else 'shared'}: set it as it was"
        )
    if saved:
        if loss.heads is None:
            raise ValueError("the state has a batch classifier: call loss.bind(model) before loss.load_state_dict")
        nn.ModuleList(loss.heads.batch_layers).load_state_dict(saved)
        for layer in loss.heads.layers:
            layer.recorder.trained = True
