"""Gradients that the memory's loss shares with the batch loss."""

import copy
import json

import pytest
import torch

pytest.importorskip("fastreid.config", reason="fast-reid is not installed")

from benchmarks.retrieval import gradients
from benchmarks.retrieval.settings import Cell, load_settings
from mbj_plugin.fastreid.collect import mbj_heads


def test_layers():
    names = ["backbone.model.blocks.3.0.conv.weight", "backbone.0.weight", "heads.weight", "backbone.model.bn1.bias"]
    assert [gradients.layer_of(name) for name in names] == [
        "backbone.model.blocks.3",
        "backbone.0",
        "heads",
        "backbone.model.bn1",
    ]


def test_norms_and_cosines_against_two_backward_passes(make_trainer, steps):
    trainer = make_trainer("MODEL.MBJ.NORM", "max", "MODEL.MBJ.START", 17)  # not begun: measured all the same
    steps(trainer, 2)
    model = trainer.model
    state = {name: value.clone() for name, value in model.state_dict().items()}
    batch = next(trainer._trainer._data_loader_iter)
    measured = gradients.shared(model, batch)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    model = copy.deepcopy(model)
    for memory in mbj_heads(model)[0].memories.values():
        memory.start = 0
    with gradients.EventStorage():
        losses = model(batch)
    parameters = dict(model.named_parameters())
    vectors = []
    for loss in (losses["loss_cls"], losses["loss_mbj"]):
        model.zero_grad()
        loss.backward(retain_graph=True)
        zeros = {name: torch.zeros_like(value) for name, value in parameters.items()}
        vectors.append(zeros | {name: v.grad.clone() for name, v in parameters.items() if v.grad is not None})
    for layer in ("backbone.0", "heads", "all"):
        names = [name for name in parameters if layer in ("all", gradients.layer_of(name))]
        batch_loss, memory_loss = (torch.cat([part[name].flatten() for name in names]) for part in vectors)
        assert measured[layer]["batch"] == pytest.approx(float(batch_loss.norm()), rel=1e-3)
        assert measured[layer]["memory"] == pytest.approx(float(memory_loss.norm()), rel=1e-3)
        cosine = torch.cosine_similarity(batch_loss, memory_loss, dim=0)
        assert measured[layer]["cosine"] == pytest.approx(float(cosine), abs=1e-3)
    assert measured["heads"]["memory"] == 0 and measured["backbone.0"]["memory"] > 0  # no prototype feels it


def test_a_method_without_a_memory(tmp_path):
    with pytest.raises(ValueError, match="baseline has no memory"):
        gradients.measure(Cell("omniglot_short_val", 20, 2, "baseline", 0), str(tmp_path), str(tmp_path), 1)


def test_a_run_is_measured(make_cfg, data_root, tmp_path, monkeypatch):
    (tmp_path / "tiny.yml").write_text(make_cfg("MODEL.MBJ.START", 9).dump())
    path = tmp_path / "settings.yaml"
    path.write_text(
        f"datasets:\n  market1501: {{name: Market1501, config: {tmp_path / 'tiny.yml'}}}\n"
        "methods:\n  mbj_w: {MBJ: {NORM: max, START: 9}}\ngroups: {}\n"
    )
    monkeypatch.setattr(gradients, "load_settings", lambda: load_settings(path))
    files = ["--data", str(data_root), "--state-dir", str(tmp_path / "run"), "--output", str(tmp_path / "out.json")]
    gradients.main([*files, "--dataset", "market1501", "--tail-size", "5", "--points", "2"])
    result = json.loads((tmp_path / "out.json").read_text())
    assert [m["iteration"] for m in result["measured"]] == [6, 12] and result["start"] == 9
    assert "6 (before)" in gradients.table(result) and "12 |" in gradients.table(result)
