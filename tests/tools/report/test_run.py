"""Reading what a run left: broken lines, memories, names."""

import json
import math

import numpy as np
import torch

from mbj_plugin.memory import MemoryBank
from mbj_plugin.tools.files import read_jsonl
from mbj_plugin.tools.report.run import RunRecord, read_bank, series


def test_broken_lines_are_counted_and_the_last_row_of_a_step_counts(tmp_path):
    path = tmp_path / "metrics.json"
    rows = [{"step": 20, "a": 1.0}, {"step": 10, "a": 2.0}, {"step": 20, "a": 3.0}, {"a": 4.0}]
    path.write_text("\n".join(map(json.dumps, rows)) + '\n\n[1, 2]\n{"step": 30, "a"')
    read, broken = read_jsonl(path, "step")
    assert read == [{"step": 10, "a": 2.0}, {"step": 20, "a": 3.0}]
    assert broken == 3


def test_series_leaves_out_what_is_no_number():
    rows = [{"step": 1, "a": 0.5}, {"step": 2}, {"step": 3, "a": math.nan}, {"step": 4, "a": "x"}, {"step": 5, "a": 2}]
    assert series(rows, "step", "a") == ([1.0, 5.0], [0.5, 2.0])


def test_broken_rows_are_a_line(tmp_path):
    run, path = RunRecord("a"), tmp_path / "metrics.json"
    path.write_text('{"iteration": 1}\nnonsense\n')
    assert run.read_lines(path, "iteration") == [{"iteration": 1}]
    assert run.missing == ["metrics.json: 1 broken line left out"]


def test_the_bank_is_what_it_was_with_its_ages():
    bank = MemoryBank(4, 3)
    bank.enqueue(torch.eye(3)[:1], torch.tensor([7]))
    bank.enqueue(torch.eye(3)[1:], torch.tensor([8, 9]), torch.tensor([True, False]))
    memory = read_bank(bank.state_dict())
    for name in ("size", "rows", "labels", "ages"):
        assert np.array_equal(getattr(memory, name), getattr(bank, name)), name


def test_a_part_that_fails_becomes_a_line_and_the_next_is_read():
    run = RunRecord("a")
    with run.part("first"):
        raise KeyError("errors")
    with run.part("second"):
        run.facts["x"] = "y"
    assert run.missing == ["first: KeyError: 'errors'"] and run.facts == {"x": "y"}
