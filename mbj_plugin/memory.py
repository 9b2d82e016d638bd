"""The memory bank of Memory-based Jitter: a FIFO queue of labelled rows, as fixed-shape tensors on the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mbj_plugin.checks import RANGES, Range, host_values, on_host

MOST_BYTES = 2**36


class MemoryBank(nn.Module):
    """First-in, first-out queue of (row, label) pairs: "we enqueue the newest features with labels, and dequeue the
    oldest ones" (paper, Section 3.2).

    No shape in :meth:`enqueue` depends on data: rejected rows are written to a discard slot behind the last one. So
    it never waits for the device, compiles to one graph (``fullgraph=True``) and can be captured in a CUDA graph. On
    a CPU without ``torch.compile`` the stored rows alone are touched, with bit-equal results.
    All state is in buffers, and a saved bank goes on exactly where it was. Rows are kept in fp32 whatever comes in.

    Whoever reads :attr:`rows` for a loss that needs grad reads a copy: the next ``enqueue`` writes in place.

    Args:
        size: Slots M, >= 1.
        dim: Length D of a row, >= 1.

    Raises:
        ValueError: for a size or dim below 1, or more than fits into memory.

    Example:
        >>> bank = MemoryBank(size=3, dim=2)
        >>> bank.enqueue(torch.ones(2, 2), torch.tensor([0, 1]))
        >>> bank.enqueue(torch.zeros(2, 2), torch.tensor([2, 3]))  # of four rows the oldest gives way
        >>> bank.labels, bank.ages
        (tensor([3, 1, 2]), tensor([0, 1, 0]))
    """

    slot_rows: Tensor
    slot_labels: Tensor
    slot_calls: Tensor
    cursor: Tensor
    calls: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.size = RANGES["size"].checked("memory size", size)
        self.dim = Range(1, whole=True).checked("memory dim", dim)
        too_large = ValueError(f"a memory of size {size} takes {4e-9 * self.size * self.dim:.0f} GB: lower it")
        if 4 * self.size * self.dim > MOST_BYTES:
            raise too_large
        try:
            self.register_buffer("slot_rows", torch.zeros(self.size + 1, self.dim))
        except RuntimeError:  # the allocator's
            raise too_large from None
        self.register_buffer("slot_labels", torch.full((self.size + 1,), -1, dtype=torch.long))
        # The call of enqueue that wrote each slot, for the age of what is remembered.
        self.register_buffer("slot_calls", torch.zeros(self.size + 1, dtype=torch.long))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.long))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def _apply(self, fn, recurse=True):
        # Rows move to another device, but stay as they are through .half(): the jitter is below its resolution.
        rows = self.slot_rows
        super()._apply(fn, recurse)
        if self.slot_rows.dtype != torch.float32:
            self.slot_rows = rows.to(self.slot_rows.device)
        return self

    @property
    def rows(self) -> Tensor:
        """(M, D) fp32 rows; those of empty slots are zero."""
        return self.slot_rows[: self.size]

    @property
    def labels(self) -> Tensor:
        """(M,) int64 labels; -1 = empty slot."""
        return self.slot_labels[: self.size]

    @property
    def filled(self) -> Tensor:
        """Number of filled slots, a 0-dim int64 tensor."""
        return (self.labels >= 0).sum()

    @property
    def ages(self) -> Tensor:
        """(M,) int64: calls of ``enqueue`` since each row came in, 0 for the newest; -1 = empty slot."""
        return torch.where(self.labels >= 0, self.calls - self.slot_calls[: self.size], -1)

    def enqueue(self, rows: Tensor, labels: Tensor, keep: Tensor | None = None) -> None:
        """Store rows, the oldest stored ones giving way.

        Rows that are not finite in fp32 and rows with a negative label are not stored. Of more kept rows than there
        are slots the newest stay.

        Args:
            rows: (N, D) rows, of any floating dtype.
            labels: (N,) integer labels; negative = unlabelled.
            keep: (N,) bool, True = store; all by default.

        Raises:
            ValueError: where shapes or dtypes do not fit the bank or each other.
        """
        if labels.ndim != 1 or rows.shape != (*labels.shape, self.dim) or labels.is_floating_point():
            raise ValueError(
                f"rows must be (N, {self.dim}) and labels (N,) integers, got {tuple(rows.shape)} and "
                f"{tuple(labels.shape)} {labels.dtype}"
            )
        if keep is not None and keep.shape != labels.shape:
            raise ValueError(f"keep must be (N,) like the labels {tuple(labels.shape)}, got {tuple(keep.shape)}")
        if rows.requires_grad:
            rows = rows.detach()
        rows, keep = rows.float(), labels >= 0 if keep is None else keep.bool()
        if all(map(on_host, (rows, labels, keep, self.cursor))):
            self._enqueue_on_host(rows, labels, keep)
        else:
            self._enqueue_on_device(rows, labels, keep)

    def _enqueue_on_device(self, rows: Tensor, labels: Tensor, keep: Tensor) -> None:
        stored = torch.isfinite(rows).all(dim=1) & (labels >= 0) & keep
        rank = stored.cumsum(0)  # 1-based rank among the stored rows, in order of arrival
        count = rank[-1] if len(rank) else rank.sum()
        stored = stored & (rank > count - self.size)
        slots = torch.where(stored, (self.cursor + rank - 1) % self.size, self.size)
        self.calls.add_(1)
        # What goes to the discard slot is always the same, so that its content does not depend on the write order.
        self.slot_rows.index_copy_(0, slots, torch.where(stored[:, None], rows, 0.0))
        self.slot_labels.index_copy_(0, slots, torch.where(stored, labels.long(), -1))
        self.slot_calls.index_copy_(0, slots, torch.where(stored, self.calls, 0))
        self.cursor.copy_((self.cursor + count) % self.size)

    def _enqueue_on_host(self, rows: Tensor, labels: Tensor, keep: Tensor) -> None:
        """The same bits by NumPy, since a host may look at values: 30 operations of torch fewer a step, and 128 x 2,048
        rows into 25,000 slots take 0.1 ms in place of 1 ms."""
        given, classes = host_values(rows), host_values(labels)
        stored = np.flatnonzero((classes >= 0) & host_values(keep))
        stored = stored[np.isfinite(given[stored]).all(axis=1)]
        cursor: Any = self.cursor.tolist()
        slots = (cursor + np.arange(len(stored)))[-self.size :] % self.size
        kept = stored[-self.size :]
        self.calls.add_(1)
        host_values(self.slot_rows)[slots] = given[kept]
        host_values(self.slot_labels)[slots] = classes[kept]
        host_values(self.slot_calls)[slots] = self.calls.tolist()
        self.cursor.fill_((cursor + len(stored)) % self.size)
        # What is written past torch: a graph that needs it as it was is told.
        for buffer in (self.slot_rows, self.slot_labels, self.slot_calls):
            torch.autograd.graph.increment_version(buffer)


torch.library.define("mbj_plugin::keep", "(Tensor x) -> Tensor")
torch.library.impl("mbj_plugin::keep", "default", torch.clone)


def snapshot(tensor: Tensor) -> Tensor:
    """What was computed from a buffer, for a backward pass that comes after the buffer is written over.

    Inductor computes in the backward pass anew what it need not keep, and does so from what the buffer holds by then:
    it would take the labels that have come in since. It does not look into an operator of ours.
    """
    return torch.ops.mbj_plugin.keep(tensor) if torch.compiler.is_compiling() else tensor
