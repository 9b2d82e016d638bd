"""The report on a real run of fast-reid, whole and broken."""

import os
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from fastreid.engine import DefaultTrainer

from mbj_plugin.fastreid.collect import mbj_heads
from mbj_plugin.tools.report import fastreid_run
from mbj_plugin.tools.report.fastreid_run import read_run
from mbj_plugin.tools.report.run import RunRecord
from mbj_plugin.tools.report.search import scores as scores_of


@pytest.fixture
def run_folder(make_trainer, tmp_path):
    """A finished run with a prototype memory, and fast-reid's own scores of it."""
    trainer = make_trainer("MODEL.MBJ.NORM", "max", "MODEL.MBJ.SIZE", 64)
    scores = trainer.train()
    folder = tmp_path / "out"
    (folder / "config.yaml").write_text(trainer.cfg.dump())
    return folder, scores


def read(folder, use_model=True, data=None):
    run = RunRecord("run")
    read_run(run, Path(folder), Namespace(device="cpu", data=data, no_model=not use_model))
    return run


def test_a_run_is_read_whole_and_broken(run_folder, tiny_plan, tmp_path, monkeypatch):
    folder, scores = run_folder
    run = read(folder)
    assert run.missing == []
    # The scores are fast-reid's own, of the same model.
    (found,) = run.searches.values()
    assert scores_of(found) == pytest.approx({key: scores[key] for key in ("mAP", "mINP", "Rank-1")}, abs=1e-3)
    assert run.retrieval_by_size == {}  # its test identities are none of the training set
    assert len(found) == 2 * tiny_plan.test
    # Four identities of eight images, twenty of two.
    assert sorted(run.class_counts.tolist()) == [2] * 20 + [8] * 4
    state = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    labels = state["heads.memories.prototype.bank.slot_labels"]
    assert torch.equal(run.memories["prototype"].slot_labels, labels) and (labels >= 0).any()
    assert run.curves["memory loss"][""][0] and run.settings["MODEL.HEADS.NAME"] == "MBJHead"

    def broken(name, edit):
        copy = shutil.copytree(folder, tmp_path / name)
        edit(copy)
        return read(copy)

    run = broken("no-config", lambda copy: (copy / "config.yaml").unlink())
    assert "config.yaml: " in run.missing[0] and run.memories and run.curves and not run.searches
    run = broken("cut-config", lambda copy: (copy / "config.yaml").write_text("MODEL: {"))
    assert "config.yaml: " in run.missing[0] and run.memories
    run = broken("cut-metrics", lambda copy: (copy / "metrics.json").open("a").write('{"iteration": 1'))
    assert "metrics.json: 1 broken line left out" in run.missing and run.curves
    final = (folder / "model_final.pth").read_bytes()
    run = broken("cut-checkpoint", lambda copy: (copy / "model_final.pth").write_bytes(final[: len(final) // 2]))
    assert any("cut short" in line for line in run.missing) and run.curves and run.class_counts is not None
    run = broken("no-checkpoint-can-be-read", lambda copy: [path.write_bytes(b"") for path in copy.glob("*.pth")])
    assert any("model_final.pth" in line for line in run.missing) and not run.memories

    def keep_the_last(copy):
        (copy / "model_final.pth").rename(copy / "model_0001.pth")
        (copy / "model_final.pth").write_bytes(final[:100])
        (copy / "last_checkpoint").write_text("model_0001.pth")

    run = broken("named-checkpoint", keep_the_last)
    assert run.facts["checkpoint"] == "model_0001.pth" and run.memories and run.searches
    run = broken("no-checkpoint", lambda copy: [path.unlink() for path in copy.glob("*.pth")])
    assert any("there is no model_final.pth" in line for line in run.missing) and run.curves
    monkeypatch.setattr("fastreid.data.build._root", str(tmp_path / "nowhere"))
    run = read(folder)
    assert any("FASTREID_DATASETS" in line for line in run.missing) and run.memories and not run.searches


def test_the_last_evaluation_counts(tmp_path):
    (tmp_path / "metrics.json").write_text('{"iteration": 1, "mAP": 10.0}\n{"iteration": 2, "mAP": 20.0}\n')
    assert read(tmp_path, use_model=False).retrieval == {"mAP": 20.0}


def test_a_checkpoint_of_another_model_is_a_line(run_folder):
    folder, _ = run_folder
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("build_tiny_backbone", "build_resnet_backbone"))
    run = read(folder)
    assert any(line.startswith("retrieval: ") for line in run.missing), run.missing
    assert run.memories and not run.searches


def test_scores_are_of_the_model_alone(make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer("DATASETS.COMBINEALL", True, "TEST.FLIP.ENABLED", True, "MODEL.MBJ.NORM", "max")
    trainer.train()
    (tmp_path / "out" / "config.yaml").write_text(trainer.cfg.dump().replace("METRIC: cosine", "METRIC: euclidean"))
    cosines = []
    find = fastreid_run.search
    monkeypatch.setattr(
        fastreid_run, "search", lambda *images, cosine: cosines.append(cosine) or find(*images, cosine=cosine)
    )
    run = read(tmp_path / "out")
    assert cosines == [False]
    assert run.class_counts.tolist() == mbj_heads(trainer.model)[0].memories["prototype"].class_counts.tolist()
    assert any("without FLIP" in line for line in run.missing) and run.searches
    # Trained on the test sets too, so each query is one of a group.
    assert {key.split()[1] for key in run.retrieval_by_size} == {"mAP", "mINP", "Rank-1"}


def test_a_baseline_has_no_memory(make_trainer, tmp_path):
    trainer = make_trainer("MODEL.HEADS.NAME", "EmbeddingHead", "SOLVER.MAX_EPOCH", 1)
    assert isinstance(trainer, DefaultTrainer)
    trainer.train()
    (tmp_path / "out" / "config.yaml").write_text(trainer.cfg.dump())
    run = read(tmp_path / "out", use_model=False)
    assert run.memories == {} and run.searches == {} and run.curves["total loss"][""][0]


def test_a_new_process_can_read_fast_reid(tmp_path):
    """fast-reid cannot be imported unless it is repaired first, also by a module of the user's."""
    (tmp_path / "shop.py").write_text("from fastreid.data.datasets import DATASET_REGISTRY\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for call, said in (
        ("from mbj_plugin.tools.report import fastreid_run", ""),
        (
            "from mbj_plugin.tools.report import main; main(['nowhere', '--import', 'shop'])",
            "there is no folder nowhere",
        ),
        ("from mbj_plugin.tools.report import main; main(['nowhere', '--import', 'shap'])", "there is no shap.py here"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", call], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert said in done.stderr and done.returncode == bool(said), done.stderr
