"""Data that is missing, misspelt, broken or cannot be searched is named, and what to do about it; before training
where that can be known."""

from __future__ import annotations

import inspect
import logging
import os
import struct
from collections.abc import Sequence
from typing import Any

from PIL import Image

from fastreid_today.changes import change, replaces, wrap
from fastreid_today.config import EVALUATOR, check_rules, near

logger = logging.getLogger("fastreid.today")
# What Pillow raises for a broken file. A broken PNG is a SyntaxError.
UNREADABLE = (OSError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)
_said: set[str] = set()
RANKS = 10  # fast-reid's evaluation reports up to Rank-10, and fails on a smaller gallery


@replaces(
    "data.datasets.bases:Dataset.check_before_run",
    'a data set that is missing: `"..." is not found`, and not where it was looked for',
)
def missing_files(_, self, required_files):
    """The error, a FileNotFoundError, names the environment variable FASTREID_DATASETS."""
    for path in [required_files] if isinstance(required_files, str) else required_files:
        if not os.path.exists(path):
            raise MissingError(path, type(self))


@change("data/datasets/msmt17.py, wildtracker.py", "the same, of two data sets that look in ways of their own")
def missing_files_elsewhere() -> str | None:
    """The same error."""

    def init_or_tell(init, self, root="datasets", **options):
        try:
            init(self, root, **options)
        except (AssertionError, FileNotFoundError) as error:
            if isinstance(error, MissingError):
                raise
            raise MissingError(getattr(error, "filename", None) or root, type(self)) from error

    wrap("data.datasets.msmt17:MSMT17.__init__", init_or_tell)
    wrap("data.datasets.wildtracker:WildTrackCrop.__init__", init_or_tell)
    return None


class MissingError(FileNotFoundError):
    def __init__(self, path: str, kind: type) -> None:
        name = getattr(kind, "dataset_name", None) or getattr(kind, "dataset_dir", None) or kind.__name__
        super().__init__(
            f"{path} is not there, or not as {kind.__name__} needs it, which is made from the files of {name}. Put "
            "them into the folder that the environment variable FASTREID_DATASETS names (default: ./datasets)"
        )


@replaces("data.common:CommDataset.__init__", "an empty training set: a bare AssertionError, or no end under a sampler")
def empty_training_set(init, self, img_items, transform=None, relabel=True):
    """A training set without images is a ValueError that says where the images were looked for."""
    if relabel and not len(img_items):
        raise ValueError(
            "the training set has no images: check DATASETS.NAMES, and that the environment variable "
            "FASTREID_DATASETS names the folder that holds the data sets (default: ./datasets)"
        )
    init(self, img_items, transform, relabel)


@replaces(
    "utils.registry:Registry.get", "a misspelt name: `No object named ... found in ... registry!`, and no list of names"
)
def unknown_names(get, self, name):
    """The error, a KeyError, gives the names that are close, or all of them."""
    if name not in self._obj_map:
        names = near(name, self._obj_map) or f": there are {', '.join(sorted(self._obj_map))}"
        raise UnknownNameError(f"there is no {name!r} in fast-reid's registry {self._name}{names}")
    return get(self, name)


class UnknownNameError(KeyError):
    """A KeyError that prints as its text, not as the text in quotes."""

    def __str__(self) -> str:
        return self.args[0]


@replaces("data.common:CommDataset.__getitem__", "one image that is cut short ends the run, and nothing says which")
def broken_images(read, self, index):
    """In training another image of the same identity stands in, with a warning for each file; in evaluation, and where
    no other can be read, a ValueError names it."""
    try:
        return read(self, index)
    except UNREADABLE as error:
        path, identity = self.img_items[index][:2]
        if self.relabel:
            if path not in _said:
                _said.add(path)
                logger.warning(f"Cannot read {path} ({error}): another image of its identity is taken")
            order = [*range(index + 1, len(self.img_items)), *range(index)]
            for other in (place for place in order if self.img_items[place][1] == identity):
                try:
                    return read(self, other)
                except UNREADABLE:
                    continue
        raise ValueError(f"cannot read the image {path} ({error}): mend it, or take it away") from error


@replaces(
    "engine.defaults:DefaultTrainer.train", "a run that ends in an error, after hours, where it is to be evaluated"
)
def testable(train, self):
    """Test sets that are not there, or in which nothing can be searched, are an error before training."""
    if self.start_epoch >= self.cfg.SOLVER.MAX_EPOCH:
        raise ValueError(
            f"the checkpoint has {self.start_epoch} epochs behind it and SOLVER.MAX_EPOCH is "
            f"{self.cfg.SOLVER.MAX_EPOCH}, so there is nothing to train: raise MAX_EPOCH, or start anew in another "
            "OUTPUT_DIR without --resume"
        )
    check_evaluation(type(self), self.cfg)
    return train(self)


def check_evaluation(trainer: Any, cfg: Any) -> None:
    """What the evaluation needs, where it is fast-reid's own; of a project's only that its data sets exist."""
    from fastreid.data.datasets import DATASET_REGISTRY
    from fastreid.engine.defaults import DefaultTrainer

    if not cfg.DATASETS.TESTS:
        raise ValueError("DATASETS.TESTS is empty, and fast-reid evaluates at the end of a run: name a data set")
    for name in cfg.DATASETS.TESTS:
        DATASET_REGISTRY.get(name)
        if inspect.getattr_static(trainer, "build_evaluator") is vars(DefaultTrainer)["build_evaluator"]:
            loader, num_query = trainer.build_test_loader(cfg, name)
            check_searchable(name, loader.dataset, num_query)
            check_rules(cfg, EVALUATOR)


def check_searchable(name: str, dataset: Any, num_query: int) -> None:
    """Raise ValueError where no query can be found, for fast-reid compares it with images of other cameras alone, or
    where the gallery is too small. The first ``num_query`` images are the queries. What has no ``img_items`` is not
    looked at."""
    items: Sequence[tuple] | None = getattr(dataset, "img_items", None)
    if items is None:
        return
    queries, gallery = items[:num_query], items[num_query:]
    if not queries or len(gallery) < RANKS:
        raise ValueError(
            f"{name} has {len(queries)} query and {len(gallery)} gallery images, too few to evaluate: it takes 1 and "
            f"{RANKS}. Set DATASETS.TESTS to another set, or look into its folder"
        )
    cameras: dict[object, set] = {}
    for _, identity, camera, *_ in gallery:
        cameras.setdefault(identity, set()).add(camera)
    if not any(cameras.get(identity, set()) - {camera} for _, identity, camera, *_ in queries):
        number = len({item[2] for item in items})
        raise ValueError(
            f"{name} cannot be evaluated: no query has an image of its identity from another camera in the gallery "
            f"({number} camera{'s' * (number != 1)} in all), and those of its own camera do not count. Give the images "
            "the cameras that took them, or set DATASETS.TESTS to another set"
        )
