"""A run that could not be evaluated at its end, before its last checkpoint, does not begin."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from fastreid_today.changes import replaces
from fastreid_today.messages import no_match

RANKS = 10  # fast-reid's evaluation reports up to Rank-10, and fails on a smaller gallery


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
    """What the evaluation needs, where it is fast-reid's own; of a project's only that its data sets exist.

    Raises:
        ValueError: where no data set is named, or one cannot be searched.
        FileNotFoundError: where a test set is not there.
    """
    from fastreid.data.datasets import DATASET_REGISTRY
    from fastreid.engine.defaults import DefaultTrainer

    if not cfg.DATASETS.TESTS:
        raise ValueError("DATASETS.TESTS is empty, and fast-reid evaluates at the end of a run: name a data set")
    for name in cfg.DATASETS.TESTS:
        DATASET_REGISTRY.get(name)
        if inspect.getattr_static(trainer, "build_evaluator") is vars(DefaultTrainer)["build_evaluator"]:
            loader, num_query = trainer.build_test_loader(cfg, name)
            check_searchable(name, loader.dataset, num_query)


def check_searchable(name: str, dataset: Any, num_query: int) -> None:
    """fast-reid compares a query with images of other cameras alone.

    Args:
        name: what the messages call the data set.
        dataset: of the test loader; one without ``img_items`` is not looked at.
        num_query: its first images are the queries, the others the gallery.

    Raises:
        ValueError: where no query can be found, or the gallery is too small.
    """
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
        raise ValueError(no_match(name, f"{number} camera{'s' * (number != 1)}"))
