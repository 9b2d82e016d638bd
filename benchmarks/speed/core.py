"""Pairs of the core: the enqueue against other memory banks, the loss before its start, of a sample, in bf16."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.speed.timing import Call, Pair
from mbj_plugin import FeatureMemoryLoss, MemoryBank

BANKS = ((32, 64, 500), (64, 2048, 3500), (128, 2048, 25_000))  # rows, their length, slots
CLASSES, ROWS, SLOTS, DRAWN = 8142, 32, 5000, 500  # of iNaturalist18's step, with a fifth of its memory
NETWORK, SIDE, INAT_SLOTS, INAT_SAMPLE, RANKS = "resnet50", 224, 25_000, 2_500, 4  # of its recipe


def enqueue_pairs(device: str) -> Iterator[Pair]:
    """The enqueue against those of pytorch-metric-learning and lightly, which check no row and save no cursor."""
    try:
        from lightly.models.modules.memory_bank import MemoryBankModule
        from pytorch_metric_learning.losses import ContrastiveLoss, CrossBatchMemory
    except ImportError as error:
        raise SystemExit(f"{error}: pip install -e '.[speed]', or leave `enqueue` out of --only") from None
    for count, dim, slots in BANKS:
        rows, labels = torch.randn(count, dim, device=device), torch.randint(0, 100, (count,), device=device)
        bank = MemoryBank(slots, dim).to(device)
        cross_batch = CrossBatchMemory(ContrastiveLoss(), dim, slots).to(device)
        module = MemoryBankModule((slots, dim)).to(device)
        shape = f"({count} x {dim}, M {slots})"
        ours = partial(bank.enqueue, rows, labels)
        add = partial(cross_batch.add_to_memory, rows, labels, count)
        yield f"enqueue / CrossBatchMemory.add_to_memory {shape}", ours, add
        yield f"enqueue / MemoryBankModule(update=True) {shape}", ours, partial(module, rows, update=True)


def loss_step(device: str, dim: int, slots: int, gathered: int = 0, lr: float = 0.0, **arguments: Any) -> Call:
    """A step of a classifier with a full memory: both losses forward and backward, and the enqueue.

    Args:
        device: of all of it.
        dim: length of a feature.
        slots: of the memory.
        gathered: rows of all ranks that enter the memory, where they are more than the batch.
        lr: of an SGD step with momentum; 0 = none.
        arguments: of the memory.
    """
    features = torch.randn(max(ROWS, gathered), dim, device=device)
    labels = torch.randint(0, CLASSES, (len(features),), device=device)
    weight = torch.nn.Parameter(torch.randn(CLASSES, dim, device=device) / dim**0.5)
    optimizer = torch.optim.SGD([weight], lr=lr, momentum=0.9)
    memory = FeatureMemoryLoss([10] * CLASSES, dim, slots, **arguments).to(device)
    memory.bank.enqueue(torch.randn(slots, dim, device=device), torch.randint(0, CLASSES, (slots,), device=device))

    def step() -> None:
        optimizer.zero_grad()
        batch_loss = F.cross_entropy(features[:ROWS] @ weight.T, labels[:ROWS])
        (batch_loss + memory(features, labels, weight)).backward()
        if lr:
            optimizer.step()

    return step


def start_pairs(device: str, dim: int) -> Iterator[Pair]:
    """Before the start against no memory loss at all, and against one that counts."""
    shape = f"(B {ROWS}, C {CLASSES}, D {dim}, M {SLOTS})"
    before = loss_step(device, dim, SLOTS, start=10**9)
    yield f"before the start / eta 0 {shape}", before, loss_step(device, dim, SLOTS, eta=0.0)
    yield f"before the start / after {shape}", before, loss_step(device, dim, SLOTS)


def sample_pairs(device: str, dim: int) -> Iterator[Pair]:
    """A sample of the memory against all of it."""
    part, whole = loss_step(device, dim, SLOTS, sample=DRAWN), loss_step(device, dim, SLOTS)
    yield f"sample {DRAWN} / whole (B {ROWS}, C {CLASSES}, D {dim}, M {SLOTS})", part, whole


def inat_pairs(device: str) -> Iterator[Pair]:
    """What MBJ adds to a rank's step at iNaturalist18's shapes, the second classifier's batch loss and update included,
    against the step of the network without it. Each rank takes its share of the sample and remembers the rows of all;
    the exchange between them is not in it."""
    model: Any = timm.create_model(NETWORK, num_classes=CLASSES).to(device).train()
    images = torch.randn(ROWS, 3, SIDE, SIDE, device=device)
    labels = torch.randint(0, CLASSES, (ROWS,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)

    def network() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    added = loss_step(device, model.num_features, INAT_SLOTS, RANKS * ROWS, lr=1e-6, sample=INAT_SAMPLE // RANKS)
    part = f"MBJ's part on one of {RANKS} ranks, sample {INAT_SAMPLE} of {INAT_SLOTS}"
    yield f"{part} / a step of {NETWORK} at {SIDE} (B {ROWS}, C {CLASSES})", added, network


def product_pairs(device: str, dim: int) -> Iterator[Pair]:
    """The logits of L_memory in bf16 against fp32, forward and backward, for rows that the classifier has fitted more
    or less; how far the loss moves is in the name."""
    for fit in (0, 12, 20):
        yield _product_pair(device, dim, fit)


def _product_pair(device: str, dim: int, fit: float) -> Pair:
    rows, labels = torch.randn(DRAWN, dim, device=device), torch.randint(0, CLASSES, (DRAWN,), device=device)
    weight = torch.randn(CLASSES, dim, device=device) / dim**0.5
    weight.index_add_(0, labels, rows, alpha=fit / dim)  # about what the logit of a row's own class gains
    weight.requires_grad_()

    def loss(dtype: torch.dtype) -> Tensor:
        return F.cross_entropy((rows.to(dtype) @ weight.to(dtype).T).float(), labels)

    exact, rounded = loss(torch.float32).item(), loss(torch.bfloat16).item()
    change = f"the loss {exact:.3g} changes by {abs(rounded / exact - 1):.1e} of itself"
    name = f"bf16 / fp32 logits ({DRAWN} x {CLASSES}, D {dim}): {change}"
    return name, lambda: loss(torch.bfloat16).backward(), lambda: loss(torch.float32).backward()
