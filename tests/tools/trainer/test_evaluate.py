import math
from contextlib import contextmanager, nullcontext

import pytest
import torch

from mbj_plugin.timm import MBJLoss
from mbj_plugin.tools.group_errors import group_errors
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
    assert error_table({"run": [errors]}).splitlines()[2].split()[-3:] == ["-", "-", "10.00"]


SEEDS = {
    "plain": [{"error": 4.0, "head": 1.0}, {"error": 8.0, "head": 1.0}, {"error": 6.0, "head": 1.0}],
    "mbj_&5": [{"error": 3.0}, {"error": 7.0}, {"error": 6.0}],
}


def test_table_of_one_run():
    errors = {"error": 12.345, "head": 1, "medium": 2, "tail": 3.0, "many_shot": 4, "few_shot": 6, "class_error": 9}
    head, _, row, *_ = error_table({"mbj": [errors]}).splitlines()
    assert head.split()[2:] == ["all", "head", "medium", "tail", "many-shot", "medium-shot", "few-shot"]
    assert row.split() == ["mbj", "12.35", "1.00", "2.00", "3.00", "4.00", "-", "6.00"]
    head, _, row, *_ = error_table({"mbj": [errors]}, headline="class_error", note="More.").splitlines()
    assert head.split()[2:4] == ["classes", "all"] and row.split()[1:3] == ["9.00", "12.35"]
    assert error_table({"mbj": [errors]}, note=" More.").endswith(" More.")


def test_seeds_are_compared_in_pairs():
    """The differences are -1, -1, 0: mean -2/3, standard deviation 0.577, of the mean 1/3."""
    head, _, first, second, *_ = error_table(SEEDS).splitlines()
    assert head.endswith("difference") and first.split()[1:4] == ["6.00", "±", "2.00"]
    assert second.split()[1:4] == ["5.33", "±", "2.08"] and second.endswith("-0.67 ± 0.33")
    two = error_table({name: each[:2] for name, each in SEEDS.items()}).splitlines()[3]
    assert two.endswith("-1.00, -1.00")
    assert error_table(SEEDS | {"other": [None, None, {"head": 1.0}]}).splitlines()[4].endswith(" -")
    assert "difference" not in error_table({name: each[:1] for name, each in SEEDS.items()}).splitlines()[0]


def test_tables_to_paste():
    head, _, row, *_ = error_table(SEEDS, "markdown").splitlines()
    assert head.startswith("| error, %") and "6.00 ± 2.00 |" in row and "1.00 ± 0.00" in row
    lines = error_table(SEEDS, "latex").splitlines()
    assert lines[0].startswith("% Test error in percent") and any(line.startswith(r" mbj\_\&5 ") for line in lines)
    assert lines[-1] == r"\end{tabular}"


@pytest.mark.parametrize(
    ("images", "metric", "key"),
    [
        ([5, 5], "top1", "error"),
        ([10, 5, 0], "top1", "error"),
        ([11, 5], "top1", "class_error"),
        ([5, 5], "class_error", "class_error"),
    ],
)
def test_a_long_tailed_evaluation_set_is_read_by_its_classes(images, metric, key):
    assert evaluate.headline(images, metric) == key


class Two(torch.nn.Module):
    """A model with two classifiers, whose images are the features."""

    def __init__(self):
        super().__init__()
        self.fc, self.num_classes = torch.nn.Linear(3, 3), 3

    def get_classifier(self):
        return self.fc

    def forward(self, x):
        return self.fc(x)


def test_every_classifier_is_measured_in_one_pass():
    model, prior = Two(), torch.tensor([0.7, 0.2, 0.1]).log()
    loss = MBJLoss([7, 2, 1]).bind(model)
    with torch.no_grad():
        model.fc.weight.copy_(-torch.eye(3))
        loss.heads.batch_layers[0].weight.copy_(torch.eye(3))
        for layer in (model.fc, *loss.heads.batch_layers):
            layer.bias.zero_()
    images = torch.tensor([[0.0, -1, -9], [0, -1, -9], [0, 1, -9], [0, -9, 3.0]])
    labels = torch.tensor([0, 1, 1, 2])
    metrics = validate(model, [(images, labels)], 3, torch.device("cpu"), nullcontext, log_prior=prior)
    assert list(metrics) == ["batch", "batch_adjusted", "memory"]
    assert [each["wrong"] for each in metrics.values()] == [[0, 1, 0], [1, 0, 0], [1, 2, 1]]
    assert metrics["batch"]["class_error"] == pytest.approx(50 / 3) and metrics["batch"]["top1"] == 75
    expected = torch.nn.functional.cross_entropy(images - prior, labels)
    assert metrics["batch_adjusted"]["loss"] == pytest.approx(expected.item())


def test_under_autocast_both_classifiers_tell_logits_apart_that_are_one_number_in_half_precision():
    model = Two()
    loss = MBJLoss([7, 2, 1]).bind(model)
    with torch.no_grad():
        for scale, layer in zip((1, -1), (model.fc, *loss.heads.batch_layers), strict=True):
            layer.weight.copy_(scale * torch.diag(torch.tensor([1.0, 1.001, 1.0])))
            layer.bias.copy_(torch.tensor([0.0, 0, -99]))
    images, labels = torch.tensor([[16.0, 16, 0], [-16, -16, 0]]), torch.tensor([1, 1])
    metrics = validate(model, [(images, labels)], 3, torch.device("cpu"), lambda: torch.autocast("cpu", torch.bfloat16))
    assert torch.tensor(16.0).bfloat16() == torch.tensor(16.016).bfloat16()
    assert [metrics[name]["wrong"] for name in ("memory", "batch")] == [[0, 1, 0]] * 2  # and not [0, 2, 0]
    assert not (model.fc._forward_hooks.keys() - {handle.id for handle in model.fc.recorder.handles})


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
        if label < 0:
            continue
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


def test_validate_is_the_mean_over_images_with_a_class():
    logits, labels = labelled(13)
    labels[6] = -1
    loader = torch.utils.data.DataLoader(numbered(labels, 13), 4)
    model = Table(logits).train()
    metrics = validate(model, loader, 7, torch.device("cpu"), nullcontext)["batch"]
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
    metrics = validate(model, loader, 7, torch.device("cpu"), autocast, channels_last=True)["batch"]
    assert_metrics(metrics, by_hand((1e4 * logits).bfloat16(), labels, 7))
    assert inside == [True] and model.asked == [(False, True, True)]


def test_over_all_ranks_a_stream_counts_what_it_gives(monkeypatch):
    """Nobody knows the length of an iterable set, so nothing of it is a repetition."""
    logits, labels = labelled(6)
    batches = [(numbered(labels, 6).tensors[0], labels)]
    loader = type("Stream", (), {"dataset": iter(()), "__iter__": lambda self: iter(batches)})()
    monkeypatch.setattr(evaluate, "rank_and_world", lambda: (1, 2))
    monkeypatch.setattr(evaluate.dist, "all_reduce", lambda tensor: None)
    metrics = validate(Table(logits), loader, 7, torch.device("cpu"), nullcontext)["batch"]
    assert_metrics(metrics, by_hand(logits, labels, 7))


def test_small_losses_count_beside_large_ones():
    """Sums are of 64 bits: of 32, a loss of one would be lost beside one of 2^25."""
    logits, labels = torch.tensor([[2.0**25, 0, 0], [0, 0, 0]]), torch.tensor([1, 2])
    loader = [(logits[:1], labels[:1]), (logits[1:], labels[1:])]
    metrics = validate(torch.nn.Identity(), loader, 3, torch.device("cpu"), nullcontext)["batch"]
    assert 2 * metrics["loss"] - 2**25 == pytest.approx(math.log(3), abs=1e-3)
