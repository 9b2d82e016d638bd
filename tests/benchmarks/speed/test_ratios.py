"""The command that compares speeds: its rows, and that both sides get the same number of turns."""

import json

import pytest
import torch

from benchmarks.speed import core, hosts, ranks, ratios, timing


def test_calls_take_turns_and_the_first_of_each_is_not_timed(monkeypatch):
    now, turns = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def call(name, seconds):
        turns.append(name)
        now[0] += 100 if len(turns) <= 2 else seconds

    assert timing.in_turn(lambda: call("a", 3), lambda: call("b", 2), 4) == ([3] * 4, [2] * 4)
    assert turns == ["a", "b"] * 5


def test_a_ratio_is_of_medians_and_its_error_of_the_turns_own_ratios():
    measured = timing.ratio(([3.0, 2.0, 7.0], [2.0, 2.0, 2.0]))
    assert measured == {"ratio": 1.5, "repeats": 3, "error": 0.7638, "microseconds": [3e6, 2e6]}
    assert "error" not in timing.ratio(([3.0, 2.0], [2.0, 2.0]))


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(core, "CLASSES", 6)
    monkeypatch.setattr(core, "SLOTS", 9)
    monkeypatch.setattr(core, "DRAWN", 3)
    for name, value in {"NETWORK": "test_resnet", "SIDE": 32, "INAT_SLOTS": 20, "INAT_SAMPLE": 8}.items():
        monkeypatch.setattr(core, name, value)


@pytest.mark.parametrize(("only", "rows"), [("start", 2), ("sample", 1), ("inat", 1), ("product", 3)])
def test_rows(only, rows, tiny, capsys, tmp_path):
    ratios.main(["--only", only, "--repeats", "1", "--dim", "4", "--output", str(tmp_path / "rows.jsonl")])
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == rows and printed == (tmp_path / "rows.jsonl").read_text().splitlines()
    for row in map(json.loads, printed):
        assert row["ratio"] > 0 and row["device"] == "cpu, 1 thread(s)" and "torch" in row["versions"]


def test_ranks_say_what_they_receive():
    (row,) = ranks.rank_rows(1, worlds=(2,))
    # 32 features of 2,048 fp32 numbers and 32 int64 labels of the one other rank.
    assert "2 ranks" in row["what"] and f"{32 * (2048 * 4 + 8) / 1e6:.2f} MB received" in row["what"]
    assert all(seconds > 0 for each in row["seconds"] for seconds in each)


def test_a_step_of_timm_trains(tmp_path, caplog):
    caplog.set_level("WARNING", logger="mbj_plugin")  # as the step sets it, but for this test alone
    hosts.draw(tmp_path / "images")
    step = hosts.timm_step(str(tmp_path), 4, "--mbj", "--mbj-start", "0", "--model-kwargs", "depth=8")
    (run,) = (cell.cell_contents for cell in step.__closure__ if hasattr(cell.cell_contents, "task"))
    before = run.task.criterion.memories["feature"].bank.calls.item()
    weight = run.task.get_trainable_module().get_classifier().weight.clone()
    step()
    assert run.task.criterion.memories["feature"].bank.calls.item() == before + 1 == 31
    assert not torch.equal(weight, run.task.get_trainable_module().get_classifier().weight)


def test_a_whole_run_ends_with_its_table(monkeypatch, tmp_path, caplog):
    caplog.set_level("WARNING", logger="mbj_plugin")
    monkeypatch.setattr(hosts, "RUN", ("--epochs", "1", "--decay-milestones", "1", "--mbj-start", "0"))
    ((what, on, off),) = hosts.run_pairs("cpu")
    assert "a whole run" in what and "\nMBJ " in on()
    printed = off()
    assert "cross-entropy" in printed and "\nMBJ " not in printed


def test_a_report_takes_the_last_of_each(tmp_path, capsys):
    rows = [{"what": "a / b", "ratio": r, "microseconds": [r * 1e3, 1e3], "repeats": 5} for r in (0.5, 0.25)]
    rows.append({"what": "c / d", "ratio": 1.0, "error": 0.002, "microseconds": [1e3, 1e3], "repeats": 5})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ratios.main(["--report", str(tmp_path / "rows.jsonl")])
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| a / b | 0.250 | 0.25 ms | 1 ms | 5 |",
        "| c / d | 1.000 ± 0.002 | 1 ms | 1 ms | 5 |",
    ]


def test_the_committed_page_is_made_from_the_committed_rows(request):
    docs = request.config.rootpath / "docs"
    rows = [json.loads(line) for line in (docs / "results" / "speed.jsonl").read_text().splitlines()]
    assert ratios.table(rows) in (docs / "results" / "speed.md").read_text()


def test_without_the_peers_one_line_names_the_fix(monkeypatch):
    monkeypatch.setitem(ratios.sys.modules, "lightly.models.modules.memory_bank", None)
    with pytest.raises(SystemExit, match=r"\[speed\]"):
        ratios.main(["--only", "enqueue", "--repeats", "1"])
