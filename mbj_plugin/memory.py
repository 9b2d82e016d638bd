"""The memory bank of Memory-based Jitter: a FIFO queue of labelled rows, as fixed-shape tensors on the device."""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor, nn


class MemoryBank(nn.Module):
    """First-in, first-out queue of (row, label) pairs: "we enqueue the newest features with labels, and dequeue the
    oldest ones" (paper, Section 3.2).

    No shape in :meth:`enqueue` depends on data: rejected rows are written to a discard slot behind the last one. So
    it never waits for the device, compiles to one graph (``fullgraph=True``) and can be captured in a CUDA graph.
    All state is in buffers, and a saved bank goes on exactly where it was. Rows are kept in fp32 whatever comes in.

    Whoever reads :attr:`rows` for a loss that needs grad reads a copy: the next ``enqueue`` writes in place.

    Args:
        size: Slots M, >= 1.
        dim: Length D of a row, >= 1.

    Raises:
        ValueError: for a size or dim below 1.
    """

    slot_rows: Tensor
    slot_labels: Tensor
    slot_calls: Tensor
    cursor: Tensor
    calls: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        for name, value in (("size", size), ("dim", dim)):
            # Integral: NumPy's integers too. int is one as well, but type checkers do not know that.
            if not isinstance(value, int | Integral) or value < 1:
                raise ValueError(f"memory {name} must be an integer >= 1, got {value!r}")
        self.size, self.dim = int(size), int(dim)
        self.register_buffer("slot_rows", torch.zeros(self.size + 1, self.dim))
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

    @torch.no_grad()
    def enqueue(self, rows: Tensor, labels: Tensor, keep: Tensor | None = None) -> None:
        """Store rows, the oldest stored ones giving way.

        Rows that hold a non-finite number and rows with a negative label are not stored. Of more kept rows than there
        are slots the newest stay.

        Args:
            rows: (N, D) rows, of any floating dtype.
            labels: (N,) integer labels; negative = unlabelled.
            keep: (N,) bool, True = store; all by default.

        Raises:
            ValueError: where the shapes do not fit the bank or each other.
        """
        if rows.ndim != 2 or rows.shape[1] != self.dim or labels.shape != rows.shape[:1]:
            raise ValueError(
                f"rows must be (N, {self.dim}) and labels (N,), got {tuple(rows.shape)} and {tuple(labels.shape)}"
            )
        rows = rows.detach().float()
        stored = torch.isfinite(rows).all(dim=1) & (labels >= 0)
        if keep is not None:
            if keep.shape != labels.shape:
                raise ValueError(f"keep must be (N,) like the labels {tuple(labels.shape)}, got {tuple(keep.shape)}")
            stored = stored & keep.bool()
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

    def extra_repr(self) -> str:
        return f"size={self.size}, dim={self.dim}"
