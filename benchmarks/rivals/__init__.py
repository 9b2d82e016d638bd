"""What the paper compares with and mbj_plugin does not install: LDAM-DRW, BBN, class-balanced focal loss.

A loss of these trains by ``train_timm`` too, in a clone: ``--loss benchmarks.rivals.ldam:LDAMLoss``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from benchmarks.rivals.class_balanced import ClassBalancedFocalLoss
from benchmarks.rivals.ldam import LDAMLoss
from mbj_plugin import batch_losses

LOSSES = (*batch_losses.LOSSES, "cb_focal", "ldam_drw")


def create_loss(name: str, class_counts: Tensor | Sequence[int], *, start: int = 0) -> nn.Module:
    """The loss of that name, one of ``LOSSES``, with the settings of its own paper.

    Args:
        name: of the loss.
        class_counts: (C,) training images per class.
        start: calls before the deferred re-weighting of ``ldam_drw`` begins; the authors take the first decay.

    Raises:
        ValueError: for an unknown name, and for counts or a start out of range.
    """
    if name == "cb_focal":
        return ClassBalancedFocalLoss(class_counts)
    if name == "ldam_drw":
        return LDAMLoss(class_counts, start=start)
    return batch_losses.create_loss(name, class_counts)
