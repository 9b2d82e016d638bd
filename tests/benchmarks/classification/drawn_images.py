"""Images that the tests of the harness train on, and a batch of them made by PIL."""

import io

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import functional as TF

from benchmarks.classification.data import Images, class_ranks
from benchmarks.classification.recipe import STATISTICS


def drawn(size=12, per_class=(14, 8, 6, 5, 5, 4, 4, 3, 3, 2), seed=0):
    """Classes are colours with noise; ten classes, so that the normalisation is CIFAR-10's."""
    rng = np.random.default_rng(seed)
    train_labels, test_labels = np.repeat(np.arange(10), per_class), np.repeat(np.arange(10), 5)
    colours = rng.integers(0, 200, (10, 3))

    def images(labels):
        noise = rng.integers(0, 56, (len(labels), size, size, 3))
        return (colours[labels][:, None, None] + noise).astype(np.uint8)

    ranks = class_ranks(train_labels, 0)
    return Images(images(train_labels), train_labels, ranks, images(test_labels), test_labels, "drawn")


def plain_batch(images, draw, padding):
    """(B, 3, H, W) of the draws, one crop after the other, and their (B,) labels."""
    batch, size = [], images.train.shape[1]
    for index, top, left, flip in draw.tolist():
        image = TF.crop(TF.pad(Image.fromarray(images.train[index]), padding), top, left, size, size)
        batch.append(TF.normalize(TF.to_tensor(TF.hflip(image) if flip else image), *STATISTICS[10]))
    x = torch.stack(batch).contiguous(memory_format=torch.channels_last)
    return x, torch.from_numpy(images.train_labels[draw[:, 0].numpy()])


def plain_rate(protocol, steps, update):
    """The learning rate of an update by its formula; timm's milestones act one update early."""
    decayed = protocol.decay_rate ** sum(update + 1 >= m * steps for m in protocol.milestones)
    return protocol.lr * min(1.0, update / (protocol.warmup_epochs * steps)) * decayed


def write_npz(path, images):
    def sheet(split):
        """One WebP sheet of 16 tiles a row, filled up with black tiles."""
        tiles = np.zeros((-(-len(split) // 16) * 16, 32, 32, 3), np.uint8)
        tiles[: len(split)] = split
        pixels = tiles.reshape(-1, 16, 32, 32, 3).swapaxes(1, 2).reshape(-1, 512, 3)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "WEBP", lossless=True)
        return np.frombuffer(file.getvalue(), np.uint8)

    train, test = sheet(images.train), sheet(images.test)
    np.savez(
        path,
        train_webp=train,
        train_off=np.array([0, len(train)]),
        train_label=images.train_labels.astype(np.uint8),
        train_rank=images.train_rank.astype(np.uint16),
        test_webp=test,
        test_off=np.array([0, len(test)]),
        test_label=images.test_labels.astype(np.uint8),
    )
