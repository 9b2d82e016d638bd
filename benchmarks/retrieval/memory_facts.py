"""Why a memory helps or does not: what it holds at the end of a run, and how hard it pulls."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from fastreid.utils.events import EventStorage
from torch import Tensor, nn

from mbj_plugin.fastreid.collect import mbj_heads
from mbj_plugin.memory import MemoryBank


def memory_facts(model: nn.Module, tail: Tensor) -> dict[str, dict[str, float]]:
    """What each memory of the model's first head holds.

    Args:
        model: after training.
        tail: (C,) bool, the tail identities.

    Returns:
        For each memory: "fill" (share of slots), "tail_covered" (share of tail identities with a row) and
        "rows_per_tail" (mean), both only where there is a tail; "age" (mean, iterations), "to_now" (mean angle in
        degrees between a remembered prototype and the class's prototype of now; of features: between the feature and
        the prototype) and "step" (mean angle in degrees between two rows of one class that follow on each other).
    """
    head = mbj_heads(model)[0]
    return {kind: _bank_facts(memory.bank, head.weight.detach(), tail) for kind, memory in head.memories.items()}


def _bank_facts(bank: MemoryBank, weight: Tensor, tail: Tensor) -> dict[str, float]:
    filled = bank.labels >= 0
    rows, labels, ages = bank.rows[filled], bank.labels[filled], bank.ages[filled]
    per_class = torch.bincount(labels, minlength=len(tail)).float()
    facts = {"fill": filled.float().mean().item()}
    if tail.any():
        facts["tail_covered"] = (per_class[tail] > 0).float().mean().item()
        facts["rows_per_tail"] = per_class[tail].mean().item()
    if not len(rows):
        return facts
    # Oldest first within each class.
    order = torch.argsort(labels * (ages.max() + 1) - ages)
    rows, labels = F.normalize(rows[order], dim=1), labels[order]
    same = labels[1:] == labels[:-1]
    facts["age"] = ages.float().mean().item()
    facts["to_now"] = _degrees(rows, F.normalize(weight.float(), dim=1)[labels]).mean().item()
    if same.any():
        facts["step"] = _degrees(rows[1:][same], rows[:-1][same]).mean().item()
    return facts


def _degrees(a: Tensor, b: Tensor) -> Tensor:
    return torch.rad2deg(2 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1)))


def pull(model: nn.Module, batch: dict[str, Any]) -> dict[str, float]:
    """How hard the two losses pull at the features of one training batch. Changes the model's buffers: call it last.

    Args:
        model: in training mode.
        batch: of the training loader.

    Returns:
        "loss_batch" and "loss_memory" (with eta), "gradient_ratio" (norm of the memory loss's gradient on the neck
        features over the batch loss's) and "gradient_cosine" (between the two); 0 where the memory loss reaches no
        feature.
    """
    necks = []
    hook = mbj_heads(model)[0].bottleneck.register_forward_hook(lambda module, inputs, output: necks.append(output))
    try:
        with EventStorage():  # fast-reid's heads log into one
            losses = model(batch)
    finally:
        hook.remove()
    memory = losses.pop("loss_mbj")
    ours = torch.autograd.grad(memory, necks, retain_graph=True, allow_unused=True)[0] if memory.requires_grad else None
    theirs = torch.autograd.grad(sum(losses.values()), necks)[0]
    facts = {"loss_batch": sum(losses.values()).item(), "loss_memory": memory.item()}
    if ours is None or not ours.any():
        return facts | {"gradient_ratio": 0.0, "gradient_cosine": 0.0}
    cosine = F.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0)
    return facts | {"gradient_ratio": float(ours.norm() / theirs.norm()), "gradient_cosine": float(cosine)}
