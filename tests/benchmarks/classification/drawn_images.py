"""Images that the tests of the harness train on."""

import numpy as np

from benchmarks.classification.data import Images, class_ranks


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
