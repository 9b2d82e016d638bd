"""diagnostics.jsonl and the event files, as a reader finds them."""

import json
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


def test_rows_and_events_and_a_resumed_run_that_writes_them_again(tmp_path):
    first = DiagnosticsWriter(tmp_path, 0, 0)
    first.write(9, 0, {"mbj/a": 0.0, "mbj/b": math.nan})
    assert read(tmp_path) == [{"step": 9, "epoch": 0, "mbj/a": 0.0}]  # already, without a close
    assert events(tmp_path, "mbj/a") == [(9, 0)]
    for epoch in range(1, 4):
        first.write(9 * (epoch + 1), epoch, {"mbj/a": float(epoch), "mbj/b": 2.0})
    first.close()
    second = DiagnosticsWriter(tmp_path, 2, 18)
    assert [row["epoch"] for row in read(tmp_path)] == [0, 1]
    second.write(27, 2, {"mbj/a": 20.0})
    second.close()
    assert [(row["step"], row["mbj/a"]) for row in read(tmp_path)] == [(9, 0), (18, 1), (27, 20)]
    assert events(tmp_path, "mbj/a") == [(9, 0), (18, 1), (27, 20)] and events(tmp_path, "mbj/b") == [(18, 2)]


def test_a_line_that_a_kill_cut_short_and_lines_that_are_no_rows_are_left_out(tmp_path):
    path = tmp_path / "diagnostics.jsonl"
    row = b'{"step": 9, "epoch": 0}\n'
    path.write_bytes(b'\xff\xfe\n[1]\n3\nnull\n{"step": 9}\n' + row + b'{"step": 18, "epoch": 1}\n{"step": 27, "ep')
    drop_epochs(path, 1)
    assert path.read_bytes() == row
    drop_epochs(tmp_path / "nowhere.jsonl", 5)


@pytest.mark.parametrize("fault", ["not installed", "no space left"])
def test_events_that_cannot_be_written_are_one_line(tmp_path, monkeypatch, caplog, fault):
    def fail(*_, **__):
        raise RuntimeError(fault)

    if fault == "not installed":
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    else:
        monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", fail)
    writer = DiagnosticsWriter(tmp_path, 0, 0)
    writer.write(9, 0, {"mbj/a": 0.5})
    writer.close()
    assert len(caplog.messages) == 1 and "pip install tensorboard" in caplog.text
    assert fault == "not installed" or fault in caplog.text
    assert read(tmp_path) == [{"step": 9, "epoch": 0, "mbj/a": 0.5}]
    assert [file.name for file in tmp_path.iterdir()] == ["diagnostics.jsonl"]
