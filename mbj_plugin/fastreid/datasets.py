"""Long-tailed editions <H, S> of Market-1501 and DukeMTMC-reID (paper, Section 4.1), of Omniglot and of glyphs.

The H most frequent identities keep all their training images, the others S. Query and gallery stay whole. Which images
stay depends on their names alone, not on the folder, the file system or the machine. Any H and S go by name:
``Market1501_LT_H30_S2`` is registered when it is asked for.

DukeMTMC was withdrawn by its authors; its editions are here for those who hold it lawfully, to compare with the paper.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable

from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset
from fastreid.data.datasets.dukemtmcreid import DukeMTMC
from fastreid.data.datasets.market1501 import Market1501

from mbj_plugin.fastreid.characters import Glyphs, Omniglot, OmniglotVal
from mbj_plugin.longtail import head_tail_subset

WITH_EDITIONS = (Market1501, DukeMTMC, Omniglot, OmniglotVal, Glyphs)
HEADS = (100, 50, 20)
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
    if not issubclass(globals().get(name, base), base):
        raise ValueError(f"{name} is an edition of another data set {base.__name__}: give yours another name")
    if name not in globals():
        doc = f"<H{num_head}, S{tail_size}> edition of {base.__name__}."
        body = {"num_head": num_head, "tail_size": tail_size, "__doc__": doc, "__module__": __name__}
        globals()[name] = type(name, (_LongTailed, base), body)
        DATASET_REGISTRY.register(globals()[name])
    return name


def find_edition(name: str) -> type[ImageDataset]:
    """The edition of a name such as ``Omniglot_LT_H20_S2``, registered where it was not.

    Raises:
        ValueError: for a name that is no edition's, or of a data set that has none.
    """
    match = EDITION.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is no edition <H, S>: write DATASET_LT_H20_S5, such as Omniglot_LT_H20_S2")
    base = DATASET_REGISTRY.get(match[1])
    reader = getattr(base, "process_dir", None)
    if reader is None or list(inspect.signature(reader).parameters)[1:] != ["dir_path", "is_train"]:
        having = ", ".join(kind.__name__ for kind in WITH_EDITIONS)
        raise ValueError(f"{name!r}: {match[1]} has no editions <H, S>; those that have are {having}")
    return DATASET_REGISTRY.get(register_edition(base, int(match[2]), int(match[3])))


def __getattr__(name: str) -> type[ImageDataset]:
    # A process that was spawned looks the class of a pickled data set up here.
    if EDITION.fullmatch(name):
        return find_edition(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register_datasets() -> None:
    """Register the paper's editions with fast-reid."""
    for base in WITH_EDITIONS:
        for num_head in HEADS:
            register_edition(base, num_head)


def get_or_register(get: Callable, name: str) -> object:
    """DATASET_REGISTRY.get: an edition is registered when it is asked for."""
    edition = EDITION.fullmatch(str(name)) and name not in DATASET_REGISTRY._obj_map
    return find_edition(name) if edition else get(name)
