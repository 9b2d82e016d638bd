"""The draws, against the generator in Python's own integers and against shares computed by hand."""

import pytest
import torch

from mbj_plugin.sampling import counter_uniform, hard_labels

WORD = 2**64


def splitmix(state):
    """SplitMix64: the next number after ``state`` (Steele et al., 2014, Fig. 17), in unsigned 64-bit arithmetic."""
    z = (state + 0x9E3779B97F4A7C15) % WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def test_the_reference_is_splitmix64():
    # First numbers after the seed 1234567, as https://prng.di.unimi.it/splitmix64.c prints them.
    assert splitmix(1234567) == 6457827717110365317
    assert splitmix((1234567 + 0x9E3779B97F4A7C15) % WORD) == 3203168211198807973


@pytest.mark.parametrize("seed", [0, 3, 2**62 + 5, -1, -(2**63)])
@pytest.mark.parametrize(("step", "stream"), [(0, 0), (1, 0), (12345, 1), (2**40, 7)])
def test_the_numbers_are_those_of_the_generator(seed, step, stream):
    drawn = counter_uniform(torch.tensor(seed), torch.tensor(step), 9, stream)
    start = splitmix((splitmix((splitmix(seed % WORD) + stream) % WORD) + step) % WORD)
    expected = [((splitmix((start + i) % WORD) >> 40) % 2**24) / 2**24 for i in range(9)]
    assert drawn.dtype == torch.float32
    assert drawn.tolist() == expected


def test_without_a_stream_it_is_stream_0():
    seed, step = torch.tensor(5), torch.tensor(2)
    assert torch.equal(counter_uniform(seed, step, 4), counter_uniform(seed, step, 4, stream=0))


def test_hard_labels_stay_as_they_are():
    labels = torch.tensor([2, -1, 0], dtype=torch.int32)
    assert hard_labels(labels, torch.zeros(3)).tolist() == [2, -1, 0]
    assert hard_labels(labels, torch.zeros(3)).dtype == torch.int64


@pytest.mark.parametrize(
    ("probabilities", "uniform", "label"),
    [
        ([0.25, 0.5, 0.25], 0.0, 0),
        ([0.25, 0.5, 0.25], 0.24, 0),
        ([0.25, 0.5, 0.25], 0.25, 1),  # a class begins at its lower end
        ([0.25, 0.5, 0.25], 0.74, 1),
        ([0.25, 0.5, 0.25], 0.75, 2),
        ([0.25, 0.5, 0.25], 1 - 2**-24, 2),
        ([0.0, 1.0, 0.0], 0.0, 1),  # never a class without a share
        ([0.0, 1.0, 0.0], 1 - 2**-24, 1),
        ([1.0, 3.0, 0.0], 0.24, 0),  # shares, that need not add up to 1
        ([1.0, 3.0, 0.0], 0.25, 1),
        ([-5.0, 1.0, 1.0], 0.49, 1),  # less than nothing is nothing
        ([0.1, 0.2, 0.3], 1.0, 2),  # a number that was rounded up to 1 is in the last class
        ([0.0, 0.0, 0.0], 0.5, -1),
        ([0.0, float("nan"), 1.0], 0.5, -1),
        ([0.0, float("inf"), 1.0], 0.5, -1),
        ([0.0, 0.0, 1e-30], 0.5, 2),
    ],
)
def test_soft_labels_are_drawn_by_their_share(probabilities, uniform, label):
    # In a batch, so that a sum over the wrong axis shows.
    labels = torch.tensor([[0.0, 0.0, 1.0], probabilities, [1.0, 0.0, 0.0]])
    drawn = hard_labels(labels, torch.tensor([0.5, uniform, 0.5]))
    assert drawn.tolist() == [2, label, 0]
    assert drawn.dtype == torch.int64


def test_soft_labels_in_half_precision():
    """One image of a thousand classes: a running sum in bf16 would stop at 1/2 and give the rest to the last class."""
    labels = torch.full((1, 1024), 1 / 1024, dtype=torch.bfloat16)
    assert hard_labels(labels, torch.tensor([0.9])).item() == int(0.9 * 1024)


def test_counter_uniform_is_uniform_and_independent():
    seed = torch.tensor(3)
    draws = torch.stack(
        [counter_uniform(seed, torch.tensor(step), 1000, stream) for step in range(50) for stream in (0, 1)]
    )
    assert draws.min() >= 0 and draws.max() < 1
    # Kolmogorov-Smirnov distance of 100,000 draws: 1.63 / sqrt(n) is the 1 % bound.
    distance = (draws.flatten().sort().values - torch.arange(100_000) / 100_000).abs().max()
    assert distance < 1.63 / 100_000**0.5
    correlation = torch.corrcoef(draws).fill_diagonal_(0)
    assert correlation.abs().max() < 5 / 1000**0.5
    assert torch.corrcoef(torch.stack([draws.flatten()[:-1], draws.flatten()[1:]]))[0, 1].abs() < 0.02
