"""Section 3.1 of the paper as an experiment: one class cut to a tail, the others at several sizes; how do features of
tail images move from iteration to iteration?

What "more data" means depends on what is held equal. Control "iterations": every size trains for the same number of
iterations, so few images are seen many times. Control "epochs": every size sees each image equally often, so few images
mean few iterations. The paper does not say which it held.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

import mbj_plugin.timm.models  # noqa: F401  (registers resnet32_cifar)
from benchmarks.classification.data import Images, class_ranks, load_images
from benchmarks.classification.recipe import STATISTICS, crop_and_flip, normalize, pad_images
from mbj_plugin.diagnostics.jitter import angular_variance
from mbj_plugin.longtail import count_classes
from mbj_plugin.tools.trainer.data import Digits

CONTROLS = ("iterations", "epochs")
PHASES = ("before the decay", "at the end")


@dataclasses.dataclass(frozen=True)
class Study:
    """How every model of the study is trained and watched.

    Args:
        levels: images of each class but the tail, in training.
        tail_size: training images of the tail class; each is watched.
        tail_class: the class that is cut; -1 is the last.
        iterations: I of the largest level; the others train as many (control "iterations"), or as many epochs.
        window: iterations that are watched, before the decay and at the end.
        batch_size: of a step of SGD with momentum 0.9.
        lr: learning rate of the first ``decay_at`` of the run; ``decay_rate`` times that for the rest.
        decay_at: fraction of the run.
        decay_rate: see ``lr``.
        weight_decay: on every parameter.
        depth: of the CIFAR ResNet, 6n + 2.
        width: its channels.
        shrink: blocks of so many pixels a side are averaged into one.
        padding: pixels that a random crop moves an image by.
        flip: mirror half of the images.
    """

    levels: tuple[int, ...]
    tail_size: int
    tail_class: int = -1
    iterations: int = 4000
    window: int = 100
    batch_size: int = 32
    lr: float = 0.1
    decay_at: float = 0.6
    decay_rate: float = 0.1
    weight_decay: float = 5e-4
    depth: int = 8
    width: int = 16
    shrink: int = 1
    padding: int = 1
    flip: bool = False

    def __post_init__(self) -> None:
        if len(self.levels) < 2 or min(self.levels) < 1 or self.tail_size < 1:
            raise ValueError(
                f"the study needs two or more levels and a tail, all of 1 or more images, got levels {self.levels} and "
                f"tail size {self.tail_size}"
            )
        if not 0 < self.decay_at < 1:
            raise ValueError(f"decay_at is a fraction of the run between 0 and 1, got {self.decay_at}")
        if self.window < 2:
            raise ValueError(f"the window needs 2 or more iterations, got {self.window}")


DIGITS = Study(levels=(100, 50, 20, 10), tail_size=5)
CIFAR = Study(levels=(500, 200, 100, 50), tail_size=20, width=12, shrink=2, padding=2, flip=True, iterations=4000)


def load_digits() -> Images:
    """scikit-learn's digits in the shape of :class:`Images`, (N, 8, 8, 1) uint8; train and validation as one part."""
    train, more, test = (Digits(split) for split in ("train", "validation", "test"))
    labels = np.array(train.targets + more.targets)
    images = np.concatenate([train.images, more.images])[..., None]
    return Images(images, labels, class_ranks(labels, 0), test.images[..., None], np.array(test.targets), "digits")


def load_study(data: str | None, dataset: str) -> tuple[Images, Study]:
    """Images and the default study of them.

    Args:
        data: what :func:`load_images` takes; None is scikit-learn's digits.
        dataset: "cifar10_lt" or "cifar100_lt", where there is ``data``.

    Raises:
        ValueError: where there are no such images.
    """
    return (load_digits(), DIGITS) if data is None else (load_images(dataset, data), CIFAR)


def cut(images: Images, level: int, study: Study, seed: int) -> Images:
    """The training set of one level: a draw by the seed, in which smaller levels lie inside larger ones and the tail
    images are the same in all.

    Raises:
        ValueError: for a class that has too few images, or a tail class that there is not.
    """
    available = count_classes(images.train_labels)
    if not -len(available) <= study.tail_class < len(available):
        raise ValueError(f"--tail-class must be between 0 and {len(available) - 1} (or -1), got {study.tail_class}")
    wanted = np.full(len(available), level)
    wanted[study.tail_class] = study.tail_size
    if (wanted > available).any():
        short = int(np.argmax(wanted > available))
        raise ValueError(
            f"class {short} has {available[short]} images, the study wants {wanted[short]}: set smaller --levels (or "
            "--tail-size)"
        )
    rank = class_ranks(images.train_labels, seed)
    keep = rank < wanted[images.train_labels]
    return dataclasses.replace(
        images, train=images.train[keep], train_labels=images.train_labels[keep], train_rank=rank[keep]
    )


def iterations_of(images: int, largest: int, study: Study, control: str) -> int:
    """How long a training set of so many images is trained for.

    Args:
        images: of this training set.
        largest: of the largest level's.
        study: the study.
        control: one of CONTROLS.

    Raises:
        ValueError: where the set fills no batch, or the window does not fit behind the decay.
    """
    steps, steps_of_largest = images // study.batch_size, largest // study.batch_size
    if not steps:
        raise ValueError(f"{images} images do not fill a batch of {study.batch_size}: set a smaller --batch-size")
    total = study.iterations if control == "iterations" else round(study.iterations / steps_of_largest * steps)
    first = int(total * study.decay_at)
    if study.window > min(first, total - first):
        raise ValueError(
            f"{images} images train for {total} iterations ({control} equal), the decay after {first}: a --window of "
            f"{study.window} does not fit, set a smaller one or more --iterations"
        )
    return total


def train_and_watch(images: Images, study: Study, iterations: int, seed: int) -> list[dict[str, Any]]:
    """Train one model and watch the tail images' features.

    Args:
        images: what :func:`cut` gives.
        study: how.
        iterations: how long.
        seed: of the weights and the batches.

    Returns:
        One row for each of PHASES: "jitter" (rad^2, mean over the tail images of the angular variance over the window),
        "jitter_one" (of the first tail image), "curve" ([iterations, rad^2] as the window grows), "train_loss",
        "train_accuracy", "test_error" and "tail_error" in percent.
    """
    images = images.shrunk(study.shrink)
    num_classes = int(images.train_labels.max()) + 1
    tail = study.tail_class % num_classes
    stats = torch.tensor(STATISTICS[num_classes]) if images.train.shape[-1] == 3 else torch.tensor([[0.305], [0.376]])
    labels = torch.from_numpy(images.train_labels)
    clean = normalize(torch.from_numpy(images.train), stats)
    test = normalize(torch.from_numpy(images.test), stats), torch.from_numpy(images.test_labels)
    padded = pad_images(torch.from_numpy(images.train), study.padding)
    torch.manual_seed(seed)
    shape = {"num_classes": num_classes, "in_chans": images.train.shape[-1]}
    model: Any = timm.create_model("resnet32_cifar", depth=study.depth, width=study.width, **shape)
    optimizer = torch.optim.SGD(model.parameters(), study.lr, momentum=0.9, weight_decay=study.weight_decay)
    rng, decay = np.random.default_rng(seed), int(iterations * study.decay_at)
    ends = dict(zip((decay, iterations), PHASES, strict=True))
    rows, watched = [], []
    batches = _batches(len(labels), study, rng)
    for iteration in range(1, iterations + 1):
        if iteration == decay + 1:
            optimizer.param_groups[0]["lr"] *= study.decay_rate
        draw = next(batches)
        crops = normalize(crop_and_flip(padded, draw, study.padding), stats)
        loss = nn.functional.cross_entropy(model.train()(crops), labels[draw[:, 0]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if any(end - study.window < iteration <= end for end in ends):
            watched.append(_features(model, clean[labels == tail]))
        if iteration in ends:
            lr = optimizer.param_groups[0]["lr"]
            rows.append({"phase": ends[iteration], "iteration": iteration, "lr": lr} | jitter(torch.stack(watched, 1)))
            rows[-1] |= _state(model, (clean, labels), test, tail)
            watched = []
    return rows


def jitter(features: Tensor) -> dict[str, Any]:
    """What a row says of the (images, iterations, D) features of the window; see :func:`train_and_watch`."""
    window = features.shape[1]
    marks = sorted({m for m in np.unique(np.geomspace(2, window, 12).round().astype(int))})
    variances = torch.stack([angular_variance(features[:, :mark]) for mark in marks])
    return {
        "jitter": float(variances[-1].mean()),
        "jitter_one": float(variances[-1, 0]),
        "curve": [[int(mark), float(v.mean())] for mark, v in zip(marks, variances, strict=True)],
    }


def _batches(count: int, study: Study, rng: np.random.Generator) -> Any:
    """Endless (B, 4) draws: image, top, left, flip; epochs without the incomplete last batch."""
    while True:
        order = rng.permutation(count)
        for begin in range(0, count - study.batch_size + 1, study.batch_size):
            draw = np.zeros((study.batch_size, 4), dtype=np.int64)
            draw[:, 0] = order[begin : begin + study.batch_size]
            draw[:, 1:3] = rng.integers(0, 2 * study.padding + 1, (study.batch_size, 2))
            draw[:, 3] = rng.integers(0, 2, study.batch_size) * study.flip
            yield torch.from_numpy(draw)


@torch.no_grad()
def _features(model: Any, images: Tensor) -> Tensor:
    """(N, D) of the model as it would be used now: in evaluation mode, on images that are not augmented. So what moves
    is the model alone."""
    model.eval()
    return model.forward_head(model.forward_features(images), pre_logits=True)


@torch.no_grad()
def _state(model: nn.Module, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], tail: int) -> dict[str, float]:
    """How far the training has come."""
    model.eval()

    def logits(images: Tensor) -> Tensor:
        return torch.cat([model(part) for part in images.split(1000)])

    output, right = logits(train[0]), logits(test[0]).argmax(1) == test[1]
    return {
        "train_loss": float(nn.functional.cross_entropy(output, train[1])),
        "train_accuracy": 100 * float((output.argmax(1) == train[1]).double().mean()),
        "test_error": 100 * float((~right).double().mean()),
        "tail_error": 100 * float((~right[test[1] == tail]).double().mean()),
    }
