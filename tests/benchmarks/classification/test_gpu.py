"""The command for a GPU, on a CPU: what comes first, and when it ends."""

import subprocess

import pytest
from drawn_images import drawn, write_npz

from benchmarks import gpu
from benchmarks.cells import read_rows
from benchmarks.classification.settings import Cell, load_settings


@pytest.fixture
def calls(monkeypatch):
    """What is called, in order, of a machine whose tests take 100 s and pass."""
    calls, clock = [], [1000.0]
    monkeypatch.setattr(gpu.time, "time", lambda: clock[0])

    def tests(command, timeout, **kwargs):
        clock[0] += 100.0
        calls.append(("tests", command[2:], timeout))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(gpu.subprocess, "run", tests)
    monkeypatch.setattr(gpu, "run_cells", lambda cells, job: calls.append(("rows", cells, job)) or 0)
    return calls


ARGUMENTS = ["--data", "x", "--time-limit", "500", "--device", "cpu"]


def test_tests_come_first_then_the_groups_in_order_until_the_time_is_spent(calls, capsys):
    gpu.main(ARGUMENTS)
    (_, command, timeout), (_, cells, job) = calls
    assert command[0] == "pytest" and set(gpu.TESTS) <= set(command) and timeout == 120
    # The limit counts from the start, not from the end of the tests.
    assert job.deadline == 1500.0 and (job.processes, job.streams) == (4, 4)
    settings = load_settings()
    assert cells == list(dict.fromkeys(cell for name in gpu.GROUPS for cell in settings.group(name)))
    assert set(gpu.GROUPS) == {name for name in settings.groups if name.startswith("paper_")}
    assert "cells have a row" in capsys.readouterr().out
    assert all((gpu.ROOT / name).exists() for name in gpu.TESTS)


def test_failing_tests_end_it_and_slow_ones_do_not(calls, monkeypatch, capsys):
    monkeypatch.setattr(gpu.subprocess, "run", lambda command, **kwargs: subprocess.CompletedProcess(command, 1))
    with pytest.raises(SystemExit, match="tests fail on this GPU"):
        gpu.main(ARGUMENTS)
    assert not calls
    gpu.main([*ARGUMENTS, "--no-tests"])
    assert [call[0] for call in calls] == ["rows"]

    def slow(command, timeout, **kwargs):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(gpu.subprocess, "run", slow)
    gpu.main(ARGUMENTS)
    assert len(calls) == 2 and "going on without" in capsys.readouterr().out


def test_rows_come_in_order_and_none_is_begun_after_the_limit(tmp_path, monkeypatch):
    write_npz(tmp_path / "cifar10_lt.npz", drawn(size=32, per_class=(20,) * 10))
    (tmp_path / "settings.yaml").write_text("""
protocols:
  tiny: {depth: 8, width: 4, epochs: 2, milestones: [1], warmup_epochs: 1, batch_size: 8, max_count: {cifar10_lt: 20}}
methods: {ce: {}, focal: {loss: focal}}
groups:
  second: {datasets: [cifar10_lt], ratios: [10], protocol: tiny, methods: [ce], seeds: [0]}
  first: {datasets: [cifar10_lt], ratios: [10], protocol: tiny, methods: [focal], seeds: [0]}
""")
    monkeypatch.setattr(gpu, "GROUPS", ("first", "second"))
    more = ["--processes", "1", "--streams", "1", "--no-tests", "--device", "cpu"]
    more += [f"--{name}={tmp_path / file}" for name, file in (("data", ""), ("settings", "settings.yaml"))]
    more += [f"--results={tmp_path / 'rows.jsonl'}", f"--state-dir={tmp_path / 'state'}"]
    gpu.main(["--time-limit", "0", *more])
    assert read_rows(tmp_path / "rows.jsonl", Cell) == []
    gpu.main(["--time-limit", "600", *more])
    assert [row["method"] for row in read_rows(tmp_path / "rows.jsonl", Cell)] == ["focal", "ce"]
