"""Class counts of the training set, from the trainer's own loader.

``SimpleTrainer.__init__`` is the one place in fast-reid that sees both the model and the loader. Counting labels as
they come would be wrong under identity samplers, which draw every class alike.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from fastreid.engine.train_loop import SimpleTrainer, TrainerBase
from fastreid.utils import comm
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset, Subset

from mbj_plugin.fastreid.collect import mbj_heads
from mbj_plugin.fastreid.head import MBJHead

logger = logging.getLogger("fastreid.mbj_plugin")


def labels_of(dataset: Dataset) -> Tensor:
    """(N,) int64 label of every image of a data set, as its items give it, without reading an image.

    Raises:
        ValueError: for a data set that holds no label per image where it can be read.
    """
    if isinstance(dataset, Subset):
        return labels_of(dataset.dataset)[torch.as_tensor(dataset.indices)]
    if isinstance(dataset, ConcatDataset):
        return torch.cat([labels_of(part) for part in dataset.datasets])
    if hasattr(dataset, "img_items"):
        classes = getattr(dataset, "pid_dict", getattr(dataset, "class_to_idx", None))  # CommDataset, FastClas
        given: object = [item[1] if classes is None else classes[item[1]] for item in dataset.img_items]
    else:
        given = getattr(dataset, "targets", getattr(dataset, "labels", None))
    try:
        labels: Tensor | None = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        labels = None
    if labels is None or labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(
            f"{type(dataset).__name__} does not say the label of each image: give it fast-reid's `img_items` (and "
            "`pid_dict`) or `targets`, one integer label per image, or set MODEL.HEADS.NAME to EmbeddingHead"
        )
    return labels.long()


def class_counts(dataset: Dataset, num_classes: int) -> Tensor:
    """(C,) int64 number of training images per class.

    Raises:
        ValueError: for an empty data set, or labels that NUM_CLASSES has no class for.
    """
    labels = labels_of(dataset)
    if not len(labels):
        raise ValueError("the training set has no images: check DATASETS.NAMES and the folder FASTREID_DATASETS")
    if labels.max() >= num_classes:
        raise ValueError(
            f"MODEL.HEADS.NUM_CLASSES is {num_classes}, but the training set has labels up to {labels.max()}: set it "
            f"to {int(labels.max()) + 1}, or to 0 to have it counted"
        )
    return torch.bincount(labels[labels >= 0], minlength=num_classes)


def prepare(model: nn.Module, data_loader) -> None:
    """Tell the MBJ heads of ``model`` what they need to know of the training set. fast-reid's trainers do it by
    themselves; own training loops call it once.

    Args:
        model: the model, also inside DistributedDataParallel. Without such modules nothing happens.
        data_loader: training loader; its ``dataset`` is counted.

    Raises:
        ValueError: where the data set cannot be counted, or fills no batch.
    """
    heads = mbj_heads(model)
    if not heads:
        return
    seed_draws(heads)
    if hasattr(data_loader.dataset, "class_to_idx") and not hasattr(data_loader.dataset, "pid_dict"):
        raise ValueError(
            "MODEL.HEADS.NAME is MBJHead, which returns features in evaluation, where FastClas looks for logits of "
            "classes: set it to ClasHead. For MBJ on a classifier take the timm side"
        )
    counts = class_counts(data_loader.dataset, len(heads[0].weight))
    images, batch_size = int(counts.sum()), heads[0].schedule.batch_size
    if images < batch_size:
        raise ValueError(
            f"the training set has {images} images, fewer than SOLVER.IMS_PER_BATCH {batch_size}: an epoch has no "
            "iteration. Lower SOLVER.IMS_PER_BATCH."
        )
    for head in heads:
        head.describe_training_set(counts, images // batch_size)
    seen, s = counts[counts > 0], heads[0].settings  # all heads of a model have one schedule and one MODEL.MBJ
    if said := heads[0].schedule.warning(s.start, images // batch_size):
        logger.warning(said)
    logger.info(
        f"MBJ: {s.memory} memory of {s.size}; {len(seen)} classes of {seen.min()} to {seen.max()} images; "
        f"its loss counts from iteration {heads[0].start}"
    )


def seed_draws(heads: Sequence[MBJHead]) -> None:
    """Give each memory a seed of its own, made of the run's seed, its head's number in the model and its kind.

    The run's seed is MODEL.MBJ.SEED, or else torch's, which fast-reid's ``seed_all_rng`` sets, on the first rank: the
    same on every rank. No random number is drawn. What has drawn already, because its run goes on, keeps its seed.
    """
    draws = [
        (f"{number} {kind}", memory) for number, head in enumerate(heads) for kind, memory in head.memories.items()
    ]
    run = heads[0].settings.seed
    if run is None:
        run = comm.all_gather(torch.initial_seed())[0]
    for name, drawing in draws:
        if drawing.step == 0:
            digest = hashlib.blake2b(f"{run} {name}".encode(), digest_size=8).digest()
            drawing.seed.fill_(int.from_bytes(digest, "big", signed=True))


def prepare_first(
    init: Callable, self: SimpleTrainer, model: nn.Module, data_loader: Any, optimizer: Any, param_wrapper: Any
) -> None:
    """SimpleTrainer.__init__, and so that of every trainer built on it."""
    prepare(model, data_loader)
    init(self, model, data_loader, optimizer, param_wrapper)


def train_from(train: Callable, self: TrainerBase, start_epoch: int, max_epoch: int, iters_per_epoch: int) -> Any:
    """TrainerBase.train: the heads learn at which iteration it begins."""
    model = getattr(getattr(self, "_trainer", self), "model", None)  # DefaultTrainer holds a SimpleTrainer
    heads = mbj_heads(model) if model is not None else []
    for head in heads:
        head.begin_at(start_epoch * iters_per_epoch)
    return train(self, start_epoch, max_epoch, iters_per_epoch)
