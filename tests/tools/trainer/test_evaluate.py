import math
from contextlib import contextmanager, nullcontext

import pytest
import torch

from mbj_plugin.diagnostics.groups import group_errors
from mbj_plugin.tools.trainer import evaluate
from mbj_plugin.tools.trainer.error_table import error_table
from mbj_plugin.tools.trainer.evaluate import validate


def test_group_errors():
    errors = group_errors([10, 10, 10, 10, 10], [0, 1, 2, 3, 4], [500, 90, 30, 10, 5])
    assert errors["error"] == 20
    assert (errors["head"], errors["medium"], errors["tail"]) == (0, 10, 30)
    assert (errors["many_shot"], errors["medium_shot"], errors["few_shot"]) == (0, 15, 35)


def test_a_group_without_test_images_is_left_out():
    errors = group_errors([5, 5], [1, 0], [10, 10])
    assert "many_shot" not in errors
    assert errors["few_shot"] == 10
    many, *_ = [line for line in error_table({"run": [errors]}).splitlines() if "many  " in line]
    assert many.split() == ["many", "-"]


def test_table_of_one_run():
    errors = {"error": 12.345, "head": 1, "medium": 2, "tail": 3.0, "many_shot": 4, "few_shot": 6}
    assert error_table({"mbj": [errors]}).split("\n") == [
        f"{'error, %':<62}{'mbj':>16}",
        f"{'all':<62}{'12.35':>16}",
        "head / medium / tail (20 / 20 / 60 % of the classes by rank)",
        f"{'    head':<62}{'1.00':>16}",
        f"{'    medium':<62}{'2.00':>16}",
        f"{'    tail':<62}{'3.00':>16}",
        "many / medium / few shot (> 100, 20 to 100, < 20 images)",
        f"{'    many':<62}{'4.00':>16}",
        f"{'    medium':<62}{'-':>16}",
        f"{'    few':<62}{'6.00':>16}",
    ]


def test_table_of_several_seeds():
    runs = {
        "baseline": [{"error": 4.0}, {"error": 8.0}, {"error": 6.0}],
        "mbj": [{"error": 3.0}, {"error": 7.0}, {"error": 6.0}],
    }
    lines = error_table(runs).split("\n")
    assert lines[0] == f"{'error, % (mean ± standard deviation of 3 seeds)':<62}{'baseline':>16}{'mbj':>16}"
    assert lines[1] == f"{'all':<62}{'6.00 ± 2.00':>16}{'5.33 ± 2.08':>16}"
    assert lines[-1] == "mbj has the lower error with 2 of 3 seeds"
    two = error_table({name: each[:2] for name, each in runs.items()}).split("\n")
    assert two[0].startswith("error, % (mean ± standard deviation of 2 seeds)")
    assert two[1] == f"{'all':<62}{'6.00 ± 2.83':>16}{'5.00 ± 2.83':>16}"
    assert two[-1] == "mbj has the lower error with 2 of 2 seeds"
    with pytest.raises(ValueError, match="shorter"):  # seeds that cannot be compared
        error_table({"baseline": runs["baseline"], "mbj": runs["mbj"][:2]})
    # One seed, or other methods: nothing is won or lost.
    assert "lower error" not in error_table({name: each[:1] for name, each in runs.items()})
    assert "lower error" not in error_table({"baseline": runs["baseline"], "other": runs["mbj"]})


TWO_SEEDS = {
    "baseline": [{"error": 4.0, "head": 1.0}, {"error": 6.0, "head": 1.0}],
    "mbj_size&5": [{"error": 3.0}, {"error": 7.0}],
}


def test_markdown_to_paste():
    lines = error_table(TWO_SEEDS, "markdown").splitlines()
    assert lines[0] == "| | all | head | medium | tail | many-shot | medium-shot | few-shot |"
    assert lines[1] == "|---" + "|---:" * 7 + "|"
    assert lines[2] == "| baseline | 5.00 ± 1.41 | 1.00 ± 0.00 | - | - | - | - | - |"
    assert lines[3].startswith("| mbj_size&5 | 5.00 ± 2.83 | - |")
    assert lines[4] == "" and "mean ± standard deviation of 2 seeds; head / medium / tail (20 / 20 / 60 %" in lines[5]


def test_latex_to_paste():
    lines = error_table(TWO_SEEDS, "latex").splitlines()
    assert lines[0].startswith("% Test error in percent; mean") and lines[2] == r"\begin{tabular}{lrrrrrrr}"
    assert lines[4] == r" & all & head & medium & tail & many-shot & medium-shot & few-shot \\"
    assert lines[6] == r"baseline & 5.00 $\pm$ 1.41 & 1.00 $\pm$ 0.00 & - & - & - & - & - \\"
    assert lines[7].startswith(r"mbj\_size\&5 & 5.00 $\pm$ 2.83 & -")
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    first, *_ = error_table({"mbj": TWO_SEEDS["mbj_size&5"][:1]}, "latex").splitlines()
    assert first.startswith("% Test error in percent; head / medium / tail")


def test_validate_counts_each_class():
    logits = torch.tensor([[3.0, 1, 0], [0, 2, 1], [1, 0, 0], [0, 0, 1.0]])
    labels = torch.tensor([0, 2, 1, -1])
    loader = [(logits[:2], labels[:2]), (logits[2:], labels[2:])]
    metrics = validate(torch.nn.Identity(), loader, 3, torch.device("cpu"), nullcontext)
    assert metrics["images"] == [1, 1, 1]
    assert metrics["wrong"] == [0, 1, 1]
    assert metrics["top1"] == pytest.approx(100 / 3)
    assert metrics["top5"] == 100
    expected = torch.nn.functional.cross_entropy(logits[:3], labels[:3]).item()
    assert metrics["loss"] == pytest.approx(expected)


class Table(torch.nn.Module):
    """Answers image n of a set, all of whose pixels are n, by row n of a table; says what it was asked."""

    def __init__(self, logits, dtype=torch.float32):
        super().__init__()
        self.logits, self.dtype, self.asked = logits, dtype, []

    def forward(self, images):
        last = images.is_contiguous(memory_format=torch.channels_last)
        self.asked.append((self.training, torch.is_inference_mode_enabled(), last))
        return self.logits[images[:, 0, 0, 0].long()].to(self.dtype)


def numbered(labels, count):
    """A data set of labelled images."""
    images = torch.arange(float(count))[:, None, None, None].expand(count, 2, 3, 3).clone()
    return torch.utils.data.TensorDataset(images, labels)


def by_hand(logits, labels, classes):
    """What validate returns, image by image."""
    images, wrong, losses, top5 = [0] * classes, [0] * classes, [], 0
    for row, label in zip(logits.double(), labels.tolist(), strict=True):
        better = int((row > row[label]).sum())
        images[label] += 1
        wrong[label] += better > 0
        top5 += better < 5
        losses.append(float(row.logsumexp(0) - row[label]))
    count = len(losses)
    metrics = {"loss": sum(losses) / count, "top1": 100 * (count - sum(wrong)) / count, "top5": 100 * top5 / count}
    return metrics, images, wrong


def assert_metrics(found, expected):
    metrics, images, wrong = expected
    assert {name: found[name] for name in metrics} == pytest.approx(metrics, rel=1e-6)
    assert (found["images"], found["wrong"]) == (images, wrong)


def labelled(count, classes=7):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(count, classes, generator=generator)
    return logits, torch.randint(0, classes, (count,), generator=generator)


def test_validate_is_the_mean_over_images():
    logits, labels = labelled(13)
    loader = torch.utils.data.DataLoader(numbered(labels, 13), 4)
    model = Table(logits).train()
    metrics = validate(model, loader, 7, torch.device("cpu"), nullcontext)
    assert_metrics(metrics, by_hand(logits, labels, 7))
    assert metrics["top1"] < metrics["top5"] < 100
    assert model.asked == [(False, True, False)] * 4


def test_validate_runs_the_model_under_autocast_and_measures_in_fp32():
    logits, labels = labelled(13)
    inside = []

    @contextmanager
    def autocast():
        inside.append(True)
        yield

    model = Table(1e4 * logits, torch.bfloat16)
    loader = torch.utils.data.DataLoader(numbered(labels, 13), 13)
    metrics = validate(model, loader, 7, torch.device("cpu"), autocast, channels_last=True)
    assert_metrics(metrics, by_hand((1e4 * logits).bfloat16(), labels, 7))
    assert inside == [True] and model.asked == [(False, True, True)]


def shards(labels, ranks):
    """Per rank, its images: timm's sampler deals them out in turn, and begins anew where some ranks have fewer."""
    whole = numbered(labels, len(labels))
    order = list(range(len(labels)))
    order += order[: -len(labels) % ranks]
    for rank in range(ranks):
        loader = torch.utils.data.DataLoader(whole, 4, sampler=order[rank::ranks])
        yield rank, loader


@pytest.mark.parametrize(("count", "ranks"), [(13, 2), (13, 3), (12, 2)])
def test_over_all_ranks_each_image_counts_once(monkeypatch, count, ranks):
    """Ranks one after the other: each adds to its own sums those of the ranks before it."""
    logits, labels = labelled(count)
    sums = []
    for rank, loader in shards(labels, ranks):
        reduced = []

        def add(tensor, reduced=reduced):
            if sums:
                tensor += sums[-1][len(reduced)]
            reduced.append(tensor.clone())

        monkeypatch.setattr(evaluate, "rank_and_world", lambda rank=rank: (rank, ranks))
        monkeypatch.setattr(evaluate.dist, "all_reduce", add)
        metrics = validate(Table(logits), loader, 7, torch.device("cpu"), nullcontext)
        sums.append(reduced)
    assert_metrics(metrics, by_hand(logits, labels, 7))


def test_over_all_ranks_a_stream_counts_what_it_gives(monkeypatch):
    """Nobody knows the length of an iterable set, so nothing of it is a repetition."""
    logits, labels = labelled(6)
    batches = [(numbered(labels, 6).tensors[0], labels)]
    loader = type("Stream", (), {"dataset": iter(()), "__iter__": lambda self: iter(batches)})()
    monkeypatch.setattr(evaluate, "rank_and_world", lambda: (1, 2))
    monkeypatch.setattr(evaluate.dist, "all_reduce", lambda tensor: None)
    metrics = validate(Table(logits), loader, 7, torch.device("cpu"), nullcontext)
    assert_metrics(metrics, by_hand(logits, labels, 7))


def test_small_losses_count_beside_large_ones():
    """Sums are of 64 bits: of 32, a loss of one would be lost beside one of 2^25."""
    logits, labels = torch.tensor([[2.0**25, 0, 0], [0, 0, 0]]), torch.tensor([1, 2])
    loader = [(logits[:1], labels[:1]), (logits[1:], labels[1:])]
    metrics = validate(torch.nn.Identity(), loader, 3, torch.device("cpu"), nullcontext)
    assert 2 * metrics["loss"] - 2**25 == pytest.approx(math.log(3), abs=1e-3)
