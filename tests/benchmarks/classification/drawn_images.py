"""Images that the tests of the harness train on, and a batch of them made by PIL."""

import io

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import functional as TF

from benchmarks.classification.data import Images, class_ranks
from benchmarks.classification.recipe import STATISTICS, epoch_draws


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


def plain_steps(images, protocol, model, seed=0):
    """(epoch, step, draws) of each step; torch's SGD takes it by the gradient that was made of them.

    The learning rate is the recipe's by its formula; timm's milestones act one update early.
    """
    optimizer = torch.optim.SGD(
        model.parameters(), lr=protocol.lr, momentum=protocol.momentum, weight_decay=protocol.weight_decay
    )
    steps = len(images.train) // protocol.batch_size
    for epoch in range(protocol.epochs):
        draws = epoch_draws(len(images.train), protocol.batch_size, protocol.padding, seed, epoch)
        for step, draw in enumerate(draws):
            update = epoch * steps + step
            decayed = protocol.decay_rate ** sum(update + 1 >= m * steps for m in protocol.milestones)
            rate = protocol.lr * min(1.0, update / (protocol.warmup_epochs * steps)) * decayed
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            yield epoch, step, draw
            optimizer.step()


def assert_same_weights(cell, model):
    """Up to rounding, as the cell sums in another order."""
    for key, value in model.state_dict().items():
        torch.testing.assert_close(cell.model.state_dict()[key], value, rtol=1e-4, atol=1e-5, msg=key)


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
