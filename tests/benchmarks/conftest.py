import pickle

import pytest
import torch

from benchmarks import cells
from tests.in_fork import start_forks


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def forked(monkeypatch):
    """The processes of a harness are forks; what they are given can be pickled, which the real ones need."""

    def spawn(work, args, nprocs):
        pickle.dumps((work, args))
        start_forks(work, args, nprocs)

    monkeypatch.setattr(cells.mp, "spawn", spawn)
