from contextlib import nullcontext

import pytest
import torch

from mbj_plugin.diagnostics.groups import group_errors
from mbj_plugin.timm.trainer.error_table import error_table
from mbj_plugin.timm.trainer.evaluate import validate


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
