"""Diagnostics of fast-reid runs: what is written, by whom, and that it changes nothing."""

import json
import math
import re

import numpy as np
import pytest
import torch
from fastreid.engine import SimpleTrainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mbj_plugin.diagnostics import memory_report
from mbj_plugin.fastreid import diagnostics
from mbj_plugin.fastreid.collect import mbj_heads
from mbj_plugin.fastreid.counts import class_counts

MAX = ("MODEL.MBJ.NORM", "max", "MODEL.MBJ.SIZE", 64)


def rows(folder):
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [line for line in lines if any(name.startswith("mbj/") for name in line)]


@pytest.mark.parametrize("memory", ["prototype", "both"])
def test_what_a_run_writes(make_trainer, tmp_path, memory):
    trainer = make_trainer(*MAX, "MODEL.MBJ.MEMORY", memory)
    next(hook for hook in trainer._hooks if type(hook).__name__ == "PeriodicWriter")._period = 9
    trainer.train()
    # fast-reid's writers skip what comes after they have written in the same iteration.
    written = rows(tmp_path / "out")
    assert [row["iteration"] for row in written] == [8, 17]
    for kind, memory_loss in mbj_heads(trainer.model)[0].memories.items():
        counts = class_counts(trainer.data_loader.dataset, 24)
        for name, value in memory_report(memory_loss.bank, counts).items():
            assert written[-1].get(f"mbj/{kind}/{name}", math.nan) == pytest.approx(value, nan_ok=True), name
        assert 0 < written[-1][f"mbj/{kind}/fill"] <= 1
    events = EventAccumulator(str(tmp_path / "out"))
    events.Reload()
    assert events.Scalars("mbj/prototype/fill")[-1].value == pytest.approx(written[-1]["mbj/prototype/fill"])


def test_the_console_shows_the_loss_since_it_counts(make_trainer, monkeypatch):
    """Started in the last third, a median over all iterations would be 0. Each loss has one number, and the history of
    the others stays whole."""
    trainer = make_trainer(*MAX, "SOLVER.MAX_EPOCH", 3, "TEST.EVAL_PERIOD", 3, "MODEL.MBJ.START", 18)
    printer = next(hook for hook in trainer._hooks if type(hook).__name__ == "PeriodicWriter")._writers[0]
    said = []
    monkeypatch.setattr(printer.logger, "info", said.append)
    trainer.train()
    last = trainer.storage.histories()
    losses = [value for value, _ in last["loss_mbj"].values()]
    assert len(losses) == 9 and all(losses) and len(last["total_loss"].values()) == len(last["loss_cls"].values()) == 27
    shown = dict(re.findall(r" (\S*loss\S*): (\S+)", said[-1]))
    assert set(shown) == {"total_loss", "loss_cls", "loss_mbj"}
    assert float(shown["loss_mbj"]) == pytest.approx(np.median(losses), rel=1e-3)


def test_a_baseline_has_the_line_of_its_batch_loss(make_trainer, steps):
    steps(make_trainer("MODEL.HEADS.NAME", "EmbeddingHead"), 2)
    assert steps.scalars["loss_cls"] == steps.scalars["total_loss"] > 0


def test_measuring_does_not_change_the_run(make_trainer, monkeypatch, tmp_path):
    states = []
    for measured in (True, False):
        if not measured:
            monkeypatch.setattr(diagnostics, "add_hook", lambda *_: None)
        trainer = make_trainer(*MAX, "OUTPUT_DIR", str(tmp_path / str(measured)))
        trainer.train()
        states.append((trainer.model.state_dict(), torch.get_rng_state()))
        assert ("mbj/prototype/fill" in trainer.storage.histories()) == measured
    assert all(torch.equal(value, states[1][0][key]) for key, value in states[0][0].items())
    assert torch.equal(states[0][1], states[1][1])


@pytest.mark.parametrize("opts", [("MODEL.MBJ.ETA", 0), ("MODEL.HEADS.NAME", "EmbeddingHead")])
def test_without_a_memory_nothing_is_measured(make_trainer, tmp_path, opts):
    make_trainer(*opts).train()
    assert rows(tmp_path / "out") == []


def test_one_hook_before_the_writers(make_trainer):
    trainer = make_trainer(*MAX)
    diagnostics.add_hook(trainer, 9)
    diagnostics.add_hook(trainer, 9)  # a second call changes nothing
    hooks = [type(hook).__name__ for hook in trainer._hooks]
    assert hooks.count("DiagnosticsHook") == 1
    assert hooks.index("DiagnosticsHook") < hooks.index("PeriodicWriter")


def test_a_plain_trainer_without_a_config_is_measured_too(make_trainer):
    inner = make_trainer(*MAX)._trainer
    assert type(inner) is SimpleTrainer
    inner.max_iter = 9
    inner.train(0, 1, 9)
    assert "mbj/prototype/fill" in inner.storage.latest()
