"""A late start shares its first epochs with its batch loss: train them once, branch off from there.

Until ``start`` the memory loss is 0 and MBJ's weights are those of its batch loss to the bit. Only the memory differs
between methods, and it depends on past features and labels alone. So the run of the batch loss keeps these (its
"trunk"), and a branch plays them to its own memory. That the result is the whole run's, to the bit, is a test.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.classification.settings import Method, Protocol
from mbj_plugin.losses import FeatureMemoryLoss
from mbj_plugin.timm.criterion import MBJLoss
from mbj_plugin.timm.head import attach_head


def is_trunk(method: Method) -> bool:
    """Whether others can branch off: a plain batch loss on a plain classifier."""
    return method.memory is None and method.loss != "ldam_drw"


def joins_trunk(method: Method, protocol: Protocol) -> bool:
    """Whether the method is its batch loss until the first decay, and remembers features or nothing."""
    if method.memory is None:
        return is_trunk(method)
    late = method.start_epoch(protocol) == protocol.milestones[0]
    return late and method.memory == "feature" and is_trunk(dataclasses.replace(method, memory=None))


class FeatureLog:
    """The classifier's inputs and labels of the first steps of a run, on its device.

    Args:
        model: the model of the run; its classifier records its input from now on.
        steps: S, how many steps are kept; later ones go to a discard slot, so that a CUDA graph may write on.
        batch_size: B.
    """

    def __init__(self, model: nn.Module, steps: int, batch_size: int) -> None:
        self.heads = attach_head(model)
        device = self.heads.weight.device
        self.rows = torch.zeros(steps + 1, batch_size, self.heads.dim, device=device)
        self.labels = torch.zeros(steps + 1, batch_size, dtype=torch.long, device=device)
        self.step = torch.zeros((), dtype=torch.long, device=device)

    def write(self, labels: Tensor) -> None:
        """Keep the last forward pass, with its (B,) labels."""
        slot = self.step.clamp(max=len(self.rows) - 1)[None]
        self.rows.index_copy_(0, slot, self.heads.take().detach()[None])
        self.labels.index_copy_(0, slot, labels[None])
        self.step.add_(1)

    def state_dict(self) -> dict[str, Any]:
        steps = min(int(self.step), len(self.rows) - 1)
        return {"rows": self.rows[:steps].cpu(), "labels": self.labels[:steps].cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        steps = len(state["rows"])
        self.rows[:steps], self.labels[:steps] = (
            state["rows"].to(self.rows.device),
            state["labels"].to(self.rows.device),
        )
        self.step.fill_(steps)


def remember(criterion: MBJLoss, log: dict[str, Tensor]) -> None:
    """Play a trunk's (S, B, D) features and (S, B) labels to the criterion's memory, step by step."""
    memory = criterion.memories["feature"]
    assert isinstance(memory, FeatureMemoryLoss)
    device = memory.bank.cursor.device
    eta, memory.eta = memory.eta, 0.0  # remembers, and computes no loss
    weight = torch.zeros(len(criterion.class_counts), memory.bank.dim, device=device)
    for features, labels in zip(log["rows"].to(device), log["labels"].to(device), strict=True):
        memory(features, labels, weight)
    memory.eta = eta
