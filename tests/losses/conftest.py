import pytest
import torch


@pytest.fixture
def weight():
    return torch.nn.Parameter(torch.randn(3, 4, generator=torch.Generator().manual_seed(99)))
