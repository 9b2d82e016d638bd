"""diagnostics.jsonl and the event files, as a reader finds them."""

import json
import logging
import math
import sys

import pytest

from mbj_plugin.diagnostics.writer import DiagnosticsWriter
from mbj_plugin.files import drop_epochs


def read(folder):
    return [json.loads(line) for line in (folder / "diagnostics.jsonl").read_text().splitlines()]


def events(folder, tag):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    reader = accumulator(str(folder))
    reader.Reload()
    return [(event.step, pytest.approx(event.value)) for event in reader.Scalars(tag)]


def test_rows_and_events(tmp_path):
    writer = DiagnosticsWriter(tmp_path, 0, 0)
    writer.write(9, 0, {"mbj/a": 0.5, "mbj/b": math.nan})
    assert read(tmp_path) == [{"step": 9, "epoch": 0, "mbj/a": 0.5}]  # already, without a close
    assert events(tmp_path, "mbj/a") == [(9, 0.5)]
    writer.write(18, 1, {"mbj/a": 0.25, "mbj/b": 2.0})
    writer.close()
    assert read(tmp_path)[1] == {"step": 18, "epoch": 1, "mbj/a": 0.25, "mbj/b": 2.0}
    assert events(tmp_path, "mbj/b") == [(18, 2.0)]


def test_a_resumed_run_replaces_what_it_writes_again(tmp_path):
    first = DiagnosticsWriter(tmp_path, 0, 0)
    for epoch in range(4):
        first.write(9 * (epoch + 1), epoch, {"mbj/a": float(epoch)})
    first.close()
    second = DiagnosticsWriter(tmp_path, 2, 18)
    assert [row["epoch"] for row in read(tmp_path)] == [0, 1]
    second.write(27, 2, {"mbj/a": 20.0})
    second.close()
    assert [(row["step"], row["mbj/a"]) for row in read(tmp_path)] == [(9, 0), (18, 1), (27, 20)]
    assert events(tmp_path, "mbj/a") == [(9, 0), (18, 1), (27, 20)]


def test_a_line_that_a_kill_cut_short(tmp_path):
    path = tmp_path / "diagnostics.jsonl"
    path.write_text('{"step": 9, "epoch": 0}\n{"step": 18, "ep')
    drop_epochs(path, 5)
    assert path.read_text() == '{"step": 9, "epoch": 0}\n'
    drop_epochs(tmp_path / "nowhere.jsonl", 5)


def test_lines_that_are_no_rows_are_left_out(tmp_path):
    path = tmp_path / "diagnostics.jsonl"
    path.write_bytes(b'\xff\xfe\n[1]\n3\nnull\n{"step": 9}\n{"step": 9, "epoch": 0}\n{"step": 18, "epoch": 1}\n')
    drop_epochs(path, 1)
    assert path.read_text() == '{"step": 9, "epoch": 0}\n'


def test_events_that_cannot_be_written_are_one_line(tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("no space left")

    monkeypatch.setattr("torch.utils.tensorboard.FileWriter", fail)
    writer = DiagnosticsWriter(tmp_path, 0, 0)
    writer.write(9, 0, {"mbj/a": 0.5})
    assert len(caplog.messages) == 1 and "no space left" in caplog.text
    assert read(tmp_path) == [{"step": 9, "epoch": 0, "mbj/a": 0.5}]


def test_without_tensorboard_one_line_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with caplog.at_level(logging.INFO, "mbj_plugin"):
        writer = DiagnosticsWriter(tmp_path, 0, 0)
        writer.write(9, 0, {"mbj/a": 0.5})
        writer.close()
    assert len(caplog.messages) == 1 and "pip install tensorboard" in caplog.text
    assert read(tmp_path) == [{"step": 9, "epoch": 0, "mbj/a": 0.5}]
    assert [file.name for file in tmp_path.iterdir()] == ["diagnostics.jsonl"]
