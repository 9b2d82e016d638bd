"""The command that compares speeds: its rows, and that both sides get the same number of turns."""

import json

import pytest

from benchmarks.speed import core


def test_calls_take_turns_and_the_first_of_each_is_not_timed(monkeypatch):
    now, turns = [0.0], []
    monkeypatch.setattr(core.time, "perf_counter", lambda: now[0])

    def call(name, seconds):
        turns.append(name)
        now[0] += 100 if len(turns) <= 2 else seconds

    assert core.in_turn(lambda: call("a", 3), lambda: call("b", 2), 4) == (3, 2)
    assert turns == ["a", "b"] * 5


@pytest.mark.parametrize(("only", "rows"), [("start", 2), ("sample", 1)])
def test_rows(only, rows, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(core, "CLASSES", 6)
    monkeypatch.setattr(core, "SLOTS", 9)
    monkeypatch.setattr(core, "DRAWN", 3)
    core.main(["--only", only, "--repeats", "1", "--dim", "4", "--output", str(tmp_path / "rows.jsonl")])
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == rows and printed == (tmp_path / "rows.jsonl").read_text().splitlines()
    for row in map(json.loads, printed):
        assert row["ratio"] > 0 and row["device"] == "cpu, 1 thread(s)" and "torch" in row["versions"]


def test_without_the_peers_one_line_names_the_fix(monkeypatch):
    monkeypatch.setitem(core.sys.modules, "lightly.models.modules.memory_bank", None)
    with pytest.raises(SystemExit, match=r"\[speed\]"):
        core.main(["--only", "enqueue", "--repeats", "1"])
