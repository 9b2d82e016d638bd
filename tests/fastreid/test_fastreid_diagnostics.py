"""Diagnostics of fast-reid runs: what is written, by whom, and that it changes nothing."""

import json
import math
import random
import re

import numpy as np
import pytest
import torch
from fastreid.data.transforms import build_transforms
from fastreid.engine import SimpleTrainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mbj_plugin.diagnostics.memory_report import memory_report
from mbj_plugin.fastreid import diagnostics as monitors
from mbj_plugin.fastreid.collect import mbj_heads
from mbj_plugin.fastreid.counts import class_counts

MAX = ("MODEL.MBJ.NORM", "max", "MODEL.MBJ.SIZE", 64)


def rows(folder):
    return [json.loads(line) for line in (folder / "diagnostics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("memory", ["prototype", "both"])
def test_what_a_run_writes(make_trainer, tmp_path, memory):
    trainer = make_trainer(*MAX, "MODEL.MBJ.MEMORY", memory)
    trainer.train()
    written = rows(tmp_path / "out")
    assert [(row["step"], row["epoch"]) for row in written] == [(9, 0), (18, 1)]
    for kind, memory_loss in mbj_heads(trainer.model)[0].memories.items():
        counts = class_counts(trainer.data_loader.dataset, 24)
        for name, value in memory_report(memory_loss.bank, counts).items():
            assert written[-1].get(f"mbj/{kind}/{name}", math.nan) == pytest.approx(value, nan_ok=True), name
        assert 0 < written[-1][f"mbj/{kind}/fill"] <= 1
    assert written[-1]["mbj/probe_jitter_tail"] > 0
    events = EventAccumulator(str(tmp_path / "out"))
    events.Reload()
    names = {name for name in events.Tags()["scalars"] if name.startswith("mbj/")}
    assert names == set(written[-1]) - {"step", "epoch"}
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


def test_a_writer_that_has_just_written_misses_nothing(make_trainer, tmp_path):
    """fast-reid's writers skip what comes after they have written in the same iteration."""
    trainer = make_trainer(*MAX)
    next(hook for hook in trainer._hooks if type(hook).__name__ == "PeriodicWriter")._period = 9
    trainer.train()
    written = [json.loads(line) for line in (tmp_path / "out/metrics.json").read_text().splitlines()]
    assert sum("mbj/prototype/fill" in line for line in written) == 2


@pytest.mark.parametrize("opts", [(), ("MODEL.MBJ.ETA", 0), ("MODEL.META_ARCHITECTURE", "Distiller")], ids=str)
def test_with_and_without_diagnostics_it_is_the_same_run(make_trainer, tmp_path, opts):
    opts = [*MAX, *opts, *(("KD.EMA.ENABLED", True) if "Distiller" in opts else ())]
    states = []
    for name in ("on", "off"):
        out = tmp_path / name
        trainer = make_trainer(*opts, "MODEL.MBJ.DIAGNOSTICS", name == "on", "OUTPUT_DIR", str(out))
        trainer.train()
        states.append((trainer.model.state_dict(), torch.get_rng_state()))
        assert (out / "diagnostics.jsonl").exists() == (name == "on")
    assert states[0][0].keys() == states[1][0].keys()
    assert all(torch.equal(value, states[1][0][key]) for key, value in states[0][0].items())
    assert torch.equal(states[0][1], states[1][1])


def test_without_eta_the_probe_images_jitter_all_the_same(make_trainer, tmp_path):
    make_trainer("MODEL.MBJ.ETA", 0).train()
    last = rows(tmp_path / "out")[-1]
    assert last["mbj/probe_jitter_tail"] > 0
    assert not any("prototype" in name or "loss" in name for name in last)


def test_embedding_head_is_left_alone(make_trainer, tmp_path):
    make_trainer("MODEL.HEADS.NAME", "EmbeddingHead").train()
    assert not (tmp_path / "out/diagnostics.jsonl").exists()


def test_a_resumed_run_replaces_what_it_writes_again(make_trainer, tmp_path):
    make_trainer(*MAX).train()
    file = tmp_path / "out/diagnostics.jsonl"
    first = rows(tmp_path / "out")
    file.write_text(file.read_text() + '{"step": 27, "epoch": 2}\n{"ste')
    again = make_trainer(*MAX, "SOLVER.MAX_EPOCH", 3)
    again.resume_or_load(resume=True)
    again.train()
    written = rows(tmp_path / "out")
    assert written[:2] == first and [row["step"] for row in written] == [9, 18, 27]
    assert "mbj/prototype/fill" in written[2]


def test_probe_features_are_those_of_a_search(make_trainer):
    trainer = make_trainer(*MAX)
    monitors.add_hook(trainer, 9)
    monitors.add_hook(trainer, 9)  # a second call changes nothing
    hooks = [type(hook).__name__ for hook in trainer._hooks]
    assert hooks.count("DiagnosticsHook") == 1
    assert hooks.index("DiagnosticsHook") < hooks.index("PeriodicWriter")
    probe = next(hook for hook in trainer._hooks if type(hook).__name__ == "DiagnosticsHook").monitor.probe
    dataset, cfg = trainer.data_loader.dataset, trainer.cfg
    assert torch.equal(probe.features(), probe.features())
    dataset.transform = build_transforms(cfg, is_train=False)
    indices, _ = monitors.choose_probe(monitors.labels_of(dataset), class_counts(dataset, 24))
    images = torch.stack([dataset[int(index)]["images"] for index in indices])
    model = trainer.model.eval()
    with torch.no_grad():
        assert torch.equal(model({"images": images.clone()}), probe.features())


def test_draws_of_another_thread_meanwhile_stay_drawn(make_trainer):
    trainer = make_trainer(*MAX)
    data = trainer.data_loader.dataset
    drawn = []

    def draw(*_):
        drawn.append((float(np.random.rand()), random.random(), float(torch.rand(()))))

    class Drawing:
        def __call__(self, image):
            draw()
            return torch.zeros(3, 16, 16)

    monitors._load_images(data, [0], Drawing())
    handle = trainer.model.register_forward_pre_hook(draw)
    features = monitors._features(trainer.model, torch.zeros(2, 3, 16, 16))
    features(), features()
    handle.remove()
    numpy, python, pytorch = map(set, zip(*drawn, strict=True))
    assert len(numpy) == len(python) == 3 and len(pytorch) == 1


def test_a_plain_trainer_without_a_config_goes_without_probe_images(make_trainer, monkeypatch):
    inner = make_trainer(*MAX)._trainer
    assert type(inner) is SimpleTrainer
    said = []
    monkeypatch.setattr(monitors.logger, "info", lambda message, *values: said.append(message % values))
    inner.max_iter = 9
    inner.train(0, 1, 9)
    assert any("without probe images" in line for line in said)
    assert "mbj/prototype/fill" in inner.storage.latest()
    assert not any("probe" in name for name in inner.storage.latest())


def test_a_switch_that_is_none(make_cfg):
    with pytest.raises(ValueError, match="MODEL.MBJ.DIAGNOSTICS must be True or False, got 'maybe'"):
        make_cfg("MODEL.MBJ.DIAGNOSTICS", "maybe")
