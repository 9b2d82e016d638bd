from contextlib import nullcontext

import pytest
import torch

from mbj_plugin.timm.trainer.evaluate import error_table, group_errors, validate


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


def test_table_of_several_seeds():
    table = error_table({"baseline": [{"error": 4.0}, {"error": 6.0}], "mbj": [{"error": 3.0}, {"error": 7.0}]})
    assert "5.00 ± 1.41" in table
    assert "mbj has the lower error with 1 of 2 seeds" in table


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
