"""The pages for users of fast-reid: what they tell to type works, on a tiny synthetic set."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
import yaml
from fastreid.config import get_cfg
from page_runner import DOCS, run_page
from PIL import Image

from benchmarks.retrieval.synthetic import FOLDER
from mbj_plugin.fastreid.config import DEFAULTS
from mbj_plugin.tools import report
from mbj_plugin.tools.fastreid import export
from mbj_plugin.tools.fastreid.train import find_config

# What comes last counts.
TINY = ["MODEL.BACKBONE.NAME", "build_tiny_backbone", "MODEL.BACKBONE.FEAT_DIM", "16", "MODEL.DEVICE", "cpu"]
TINY += ["MODEL.BACKBONE.PRETRAIN", "False", "INPUT.SIZE_TRAIN", "[32,16]", "INPUT.SIZE_TEST", "[32,16]"]
TINY += ["DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "8", "SOLVER.MAX_EPOCH", "2", "SOLVER.STEPS", "[1]"]
TINY += ["TEST.EVAL_PERIOD", "2", "SOLVER.CHECKPOINT_PERIOD", "2"]
PARTS = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}


@pytest.fixture
def shop(data_root, tmp_path, monkeypatch):
    """The synthetic set as the page's own data set: datasets/shop/train/0007_2_....jpg."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for ours, theirs in PARTS.items():
        folder = tmp_path / "datasets/shop" / theirs
        folder.mkdir(parents=True)
        for file in (data_root / FOLDER / ours).iterdir():
            identity, camera, *rest = file.name.split("_")
            Image.open(file).save(folder / "_".join([identity, camera[1], *rest]))


def test_own_reid_images(shop, tmp_path, monkeypatch):
    def set_variable(words):
        name, value = words[0].split("=")
        assert name == "FASTREID_DATASETS"  # fast-reid reads it when it is imported
        monkeypatch.setattr("fastreid.data.build._root", value)

    def train(words):
        monkeypatch.setattr(sys, "argv", ["train_shop.py", *words, *TINY])
        runpy.run_path("train_shop.py", run_name="__main__")

    commands = {"export": set_variable, "python train_shop.py": train, "mbj report": report.main}
    run_page("own-reid-images.md", commands)
    for name, memories in (("shop/MBJ-seed0", True), ("shop/baseline-seed0", False)):
        assert "mAP" in (tmp_path / "logs" / name / "log.txt").read_text()
        state = torch.load(tmp_path / "logs" / name / "model_final.pth")["model"]
        assert any(".memories." in key for key in state) == memories
        assert len(state["heads.weight"]) == 24
    assert (tmp_path / "logs/shop/report/report.html").is_file()
    assert Path("shop.py").read_text().count("\n") < 20


def test_deploy(make_trainer, tmp_path, monkeypatch):
    from mbj_plugin.tools import hub
    from mbj_plugin.tools.trainer import train
    from mbj_plugin.tools.trainer.args import parse_args

    monkeypatch.chdir(tmp_path)
    make_trainer("OUTPUT_DIR", "logs/my_run").train()
    timm_run = ["--dataset", "sklearn/digits", "--val-split", "test", "--model", "test_resnet", "--input-size", "3"]
    timm_run += ["32", "32", "-b", "64", "-j", "0", "--epochs", "1", "--lr", "0.01", "--imbalance-ratio", "50", "--mbj"]
    train.train(parse_args([*timm_run, "--mbj-start", "0", "--no-progress", "--experiment", "mine"]))
    commands = {"mbj export": export.main, "mbj hub": hub.main}
    names = run_page("deploy.md", commands)
    assert names["features"].shape == (4, 16)
    torch.testing.assert_close(names["again"], names["features"])
    model, example = names["model"], names["example"]
    assert tuple(example.shape[1:]) == (3, 32, 32)
    torch.testing.assert_close(torch.jit.load("model.pt")(example), model(example))
    torch.testing.assert_close(torch.export.load("model.pt2").module()(example), model(example))


def test_the_recipe_of_the_symbols_page_is_that_of_the_configs():
    page = (DOCS / "symbols.md").read_text()
    table = page.split("\nPerson re-ID: ")[1].split("\n\n")[1]
    pairs = re.findall(r"`([A-Z_.]+) ([^`]+)`", table)
    cfg = get_cfg()
    cfg.merge_from_file(find_config("Market1501_LT_H20_S5-MBJ.yml"))
    for key, value in pairs:
        node = cfg if key.startswith(("SOLVER", "DATASETS")) else cfg.MODEL
        for part in key.split("."):
            node = node[part]
        said = ("Market1501_LT_H20_S5",) if key == "DATASETS.NAMES" else yaml.safe_load(value)
        assert node == said, key
    assert len(pairs) >= 15
    assert set(re.findall(r"`MBJ\.([A-Z]+)", page)) <= set(DEFAULTS)
