"""The criterion: any batch loss plus eta * L_memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mbj_plugin.diagnostics.step_meter import StepMeter
from mbj_plugin.losses import FeatureMemoryLoss, PrototypeMemoryLoss
from mbj_plugin.timm.head import Heads, attach_head

MEMORIES = ("feature", "prototype", "both")


class MBJLoss(nn.Module):
    """L_total = L_batch + eta * L_memory (paper, Eq. 2), called like any criterion: ``loss(output, target)``.

    Call :meth:`bind` once, so that it reads the classifier's input and weight; ``MBJTask`` does. In evaluation mode,
    and where grad is off, it is the batch loss alone.

    Args:
        class_counts: (C,) training images per class.
        base: the batch loss; cross-entropy by default.
        memory: "feature" (MBJ-F), "prototype" (MBJ-W) or "both" (MBJ-WF).
        size: slots of each memory; None = 500 features, 3,500 prototypes.
        eta: weight of each memory loss; None = 15 for features, 1/7 for prototypes.
        beta: re-balancing strength of Eq. 1.
        norm: "sum" or "max", the normalisation of Eq. 1.
        start: calls before the memory loss counts.
        momentum: of the prototype memory (MBJ*); 0 = none.
        seed: of the draws.
        ramp: calls over which eta rises linearly after the start; 0 = at once.
        prior_correction: of the feature memory, see :class:`FeatureMemoryLoss`.
        smoothing: label smoothing that soft targets carry (timm's Mixup puts it there). The memory does without: else
            head images would enter under the name of every tail class.

    Raises:
        ValueError: for a value out of range.
    """

    def __init__(
        self,
        class_counts: Tensor | Sequence[int],
        base: nn.Module | Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        memory: str = "feature",
        size: int | None = None,
        eta: float | None = None,
        beta: float = 1.5,
        norm: str = "sum",
        start: int = 0,
        momentum: float = 0.0,
        seed: int = 0,
        ramp: int = 0,
        prior_correction: bool = False,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if memory not in MEMORIES:
            raise ValueError(f"memory must be one of {MEMORIES}, got {memory!r}")
        if momentum and memory == "feature":
            raise ValueError(f"momentum {momentum} moves prototypes: it needs memory 'prototype' or 'both'")
        if prior_correction and memory == "prototype":
            raise ValueError("prior_correction is for memorised features: it needs memory 'feature' or 'both'")
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing must be in [0, 1), got {smoothing}")
        self.smoothing = smoothing
        # As everywhere in MBJ, a label of -1 is unlabelled.
        self.base = base if base is not None else nn.CrossEntropyLoss(ignore_index=-1)
        self.class_counts = torch.as_tensor(class_counts)
        shared: dict[str, Any] = {"beta": beta, "norm": norm, "start": start, "seed": seed, "ramp": ramp}
        if size is not None:
            shared["size"] = size
        if eta is not None:
            shared["eta"] = eta
        self._memory_settings: dict[str, dict[str, Any]] = {}
        if memory in ("feature", "both"):
            self._memory_settings["feature"] = {**shared, "prior_correction": prior_correction}
        if memory in ("prototype", "both"):
            self._memory_settings["prototype"] = {**shared, "momentum": momentum}
        self._make_memories(1)  # so that a wrong value is an error here, not in bind
        self.memories = nn.ModuleDict()
        self._heads: Heads | None = None
        self._checked = False
        #: L_batch and eta * L_memory of the last call, detached, for logs.
        self.parts: dict[str, Tensor] = {}
        #: Counts over the steps where diagnostics are on; see :mod:`mbj_plugin.timm.diagnostics`.
        self.meter: StepMeter | None = None

    def _make_memories(self, dim: int) -> dict[str, nn.Module]:
        kinds: dict[str, Any] = {"feature": FeatureMemoryLoss, "prototype": PrototypeMemoryLoss}
        return {name: kinds[name](self.class_counts, dim, **kw) for name, kw in self._memory_settings.items()}

    def bind(self, model: nn.Module) -> MBJLoss:
        """Read the classifier of ``model`` from now on, whose layer is replaced by one that records its input.

        Args:
            model: a timm model, before it is compiled or wrapped.

        Returns:
            self.

        Raises:
            ValueError: where no classifier is found, or its classes are not those of ``class_counts``.
        """
        heads = attach_head(model)
        if heads.num_classes != len(self.class_counts):
            raise ValueError(
                f"the model has {heads.num_classes} classes, the class counts {len(self.class_counts)}: "
                f"set --num-classes {len(self.class_counts)}, or give one count per class of the model"
            )
        self._heads = heads
        self.memories = nn.ModuleDict(self._make_memories(heads.dim)).to(heads.weight.device)
        return self

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of (B, C) logits and (B,) classes or (B, C) class probabilities."""
        batch_loss = self.base(output, target)
        if not (self.training and torch.is_grad_enabled()):
            return batch_loss
        if self._heads is None:
            raise ValueError("MBJLoss does not know the model: call loss.bind(model) once, or train with MBJTask")
        features, weight, bias = self._heads.take(), self._heads.weight, self._heads.bias
        self._check_once(output, features, weight, bias)
        if target.ndim == 2 and self.smoothing:
            target = ((target - self.smoothing / target.shape[1]) / (1 - self.smoothing)).clamp(min=0)
        if self.meter is not None:
            self.meter.see(target, [memory.bank for memory in self.memories.values()])  # type: ignore[misc]
        memory_loss = output.new_zeros((), dtype=torch.float32)
        if "feature" in self.memories:
            memory_loss = memory_loss + self.memories["feature"](features, target, weight, bias)
        if "prototype" in self.memories:
            memory_loss = memory_loss + self.memories["prototype"](features, target, weight)
        self.parts = {"loss_batch": batch_loss.detach(), "loss_memory": memory_loss.detach()}
        if self.meter is not None:
            self.meter.add(**self.parts)
        return batch_loss + memory_loss

    def _check_once(self, output: Tensor, features: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        """What the model returned must be what its classifier computes: else L_memory would train something else."""
        if self._checked or not torch.isfinite(output).all():  # fp16 may overflow in the first steps
            return
        self._checked = True
        with torch.no_grad(), torch.autocast(output.device.type, enabled=False):
            expected = F.linear(features.float(), weight.float(), None if bias is None else bias.float())
            same = expected.shape == output.shape and torch.allclose(
                expected, output.float(), rtol=0.05, atol=0.05 * float(expected.abs().max())
            )
        if not same:
            raise ValueError(
                "the model's output is not what its classifier computes from its input (it combines several heads, or "
                "scales its logits): MBJ does not know such a model, take one with a plain classifier"
            )
