"""Long-tailed editions <H, S> of re-ID data sets (paper, Section 4.1), such as ``Market1501_LT_H20_S5``.

The H most frequent identities keep all their training images, the others S. Query and gallery stay whole. Which images
stay depends on their names alone, not on the folder, the file system or the machine.

DukeMTMC was withdrawn by its authors; its editions are here for those who hold it lawfully, to compare with the paper.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable

from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset

from mbj_plugin.longtail import head_tail_subset

TAIL_SIZE = 5
EDITION = re.compile(r"(\w+)_LT_H(\d+)_S(\d+)")


class _LongTailed(ImageDataset):
    """Mixed in before a fast-reid data set whose ``process_dir`` reads one folder."""

    num_head: int
    tail_size: int

    def process_dir(self, dir_path: str, is_train: bool = True) -> list[tuple]:
        """Images of a folder, sorted by their names; of the training set those that the edition keeps."""
        items = sorted(super().process_dir(dir_path, is_train), key=lambda item: os.path.relpath(item[0], dir_path))
        if not is_train:
            return items
        kept = head_tail_subset([identity for _, identity, _ in items], self.num_head, self.tail_size)
        return [items[index] for index in kept]


def register_edition(base: type[ImageDataset], num_head: int, tail_size: int = TAIL_SIZE) -> str:
    """Register the <H, S> edition of a data set with fast-reid, where that has not been done.

    Args:
        base: a registered data set, a class with a ``process_dir(dir_path, is_train)``.
        num_head: H >= 0, identities that stay whole; as many as there are = the whole set.
        tail_size: S >= 1, images that each other identity keeps.

    Returns:
        The edition's name, for DATASETS.NAMES.

    Raises:
        ValueError: for numbers that are not whole, num_head < 0 or tail_size < 1, or where another data set has the
            edition's name.
    """
    if not (type(num_head) is type(tail_size) is int and num_head >= 0 and tail_size >= 1):
        raise ValueError(f"an edition <H, S> has whole numbers H >= 0 and S >= 1, got <{num_head!r}, {tail_size!r}>")
    name = f"{base.__name__}_LT_H{num_head}_S{tail_size}"
    known = DATASET_REGISTRY._obj_map
    if name not in known:
        doc = f"<H{num_head}, S{tail_size}> edition of {base.__name__}."
        body = {"num_head": num_head, "tail_size": tail_size, "__doc__": doc, "__module__": __name__}
        DATASET_REGISTRY.register(type(name, (_LongTailed, base), body))
    elif not issubclass(known[name], base):
        raise ValueError(f"{name} is an edition of another data set {base.__name__}: give yours another name")
    return name


def get_or_register(get: Callable, name: str) -> object:
    """DATASET_REGISTRY.get: an edition is registered when it is asked for."""
    edition = EDITION.fullmatch(str(name))
    if edition and name not in DATASET_REGISTRY._obj_map:
        base = get(edition[1])
        reader = getattr(base, "process_dir", None)
        if reader is None or list(inspect.signature(reader).parameters)[1:] != ["dir_path", "is_train"]:
            raise ValueError(
                f"{name!r}: {edition[1]} has no editions <H, S>, which take a `process_dir(dir_path, is_train)` as "
                "Market1501's and DukeMTMC's"
            )
        register_edition(base, int(edition[2]), int(edition[3]))
    return get(name)
