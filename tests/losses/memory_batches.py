"""What the tests of both losses share."""

import torch

COUNTS = [100, 10, 2]
# Every row enters: the draws are someone else's test.
ALWAYS = {"beta": 0.0, "norm": "max"}


def batch(step, rows=6, dim=4, classes=3):
    g = torch.Generator().manual_seed(step)
    return torch.randn(rows, dim, generator=g), torch.randint(0, classes, (rows,), generator=g)
