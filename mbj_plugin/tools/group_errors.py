"""Errors by class group (paper, Tables 4 and 5)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from mbj_plugin.longtail import class_groups


def group_errors(images: ArrayLike, wrong: ArrayLike, class_counts: ArrayLike) -> dict[str, float]:
    """Error in percent: of all images, and of each group of :func:`mbj_plugin.class_groups`.

    A group's error is the mean over its test images, as in the paper's Tables 4 and 5 (the test sets are balanced).

    Args:
        images: (C,) test images of each class.
        wrong: (C,) of them, those that are classified wrongly.
        class_counts: (C,) training images, which decide on the groups.

    Returns:
        "error", and one key per group that has test images.
    """
    n, bad = np.asarray(images, dtype=float), np.asarray(wrong, dtype=float)
    groups = {"error": np.arange(len(n))} | class_groups(class_counts)
    return {name: 100 * bad[c].sum() / n[c].sum() for name, c in groups.items() if n[c].sum() > 0}
