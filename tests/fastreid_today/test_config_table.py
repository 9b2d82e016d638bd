"""A bad config is an error before anything is built, which names key and value, whichever way it comes in."""

import math

import pytest
import torch
from fastreid.config import get_cfg
from fastreid.engine import DefaultTrainer, default_setup, launch
from fastreid.evaluation import ReidEvaluator
from fastreid.layers.batch_norm import get_norm
from fastreid.modeling.meta_arch import build_model
from fastreid.solver import build_lr_scheduler, build_optimizer
from fastreid.utils import comm

from fastreid_today import config

WRONG = {
    "SOLVER.IMS_PER_BATCH": (0, -8),
    "DATALOADER.SAMPLER_TRAIN": ("Foo", "", "SetReWeightSampler"),
    "MODEL.DEVICE": ("banana", ""),
    "INPUT.SIZE_TRAIN": ([0, 0], [32], [32, 16, 3], [-1, 5], [2.5, 3]),
    "INPUT.SIZE_TEST": ([0, 0],),
    "SOLVER.BASE_LR": (math.nan, -1.0, math.inf),
    "MODEL.HEADS.SCALE": (-5, 0),
    "MODEL.HEADS.NECK_FEAT": ("behind",),
    "MODEL.HEADS.POOL_LAYER": ("Mean",),
    "MODEL.HEADS.CLS_LAYER": ("Foo",),
    "MODEL.BACKBONE.NORM": ("bn",),
    "SOLVER.MAX_EPOCH": (0, -1),
    "SOLVER.CHECKPOINT_PERIOD": (0, -1),
    "TEST.EVAL_PERIOD": (0, -1),
    "TEST.METRIC": ("jaccard", "cosin"),
    "TEST.IMS_PER_BATCH": (0,),
    "SOLVER.OPT": ("Adm",),
    "SOLVER.SCHED": ("Cosine",),
    "SOLVER.WARMUP_METHOD": ("quadratic",),
    "SOLVER.STEPS": ([0], ["a"]),
    "INPUT.REA.PROB": (1.5,),
    "DATASETS.NAMES": ((),),
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_a_run_does_not_begin(make_cfg, monkeypatch, key, value):
    monkeypatch.setattr(DefaultTrainer, "run_step", lambda self: pytest.fail("it trains"))
    cfg = make_cfg("MODEL.HEADS.NAME", "EmbeddingHead")
    *nodes, name = key.split(".")
    node = cfg
    for part in nodes:
        node = node[part]
    node[name] = value
    with pytest.raises(ValueError) as error:
        DefaultTrainer(cfg).train()
    assert key in str(error.value) and repr(value) in str(error.value)


def test_every_key_is_one_of_fastreids_and_its_default_will_do():
    cfg = get_cfg()
    names = config._names(cfg)
    for target, rules in config.RULES.items():
        for node, *rest in map(str.split, rules):
            assert all(f"{node}.{name}" in names for name in rest) and (rest or node in names)
        config.check_rules(cfg, target)


@pytest.mark.parametrize(
    ("key", "value", "way"),
    [
        ("MODEL.HEADS.SCALE", -5, build_model),
        ("SOLVER.BASE_LR", -1.0, lambda cfg: build_optimizer(cfg, torch.nn.Linear(1, 1))),
        ("SOLVER.SCHED", "Cosine", lambda cfg: build_lr_scheduler(cfg, None, 9)),
        ("TEST.METRIC", "jaccard", lambda cfg: ReidEvaluator(cfg, 2)),
    ],
)
def test_the_other_ways_in(make_cfg, key, value, way):
    with pytest.raises(ValueError, match=key):
        way(make_cfg(key, value))


def test_a_projects_own_method_is_its_own_business(make_cfg):
    class Own(DefaultTrainer):
        @classmethod
        def build_evaluator(cls, cfg, name, output_dir=None):
            raise NotImplementedError

    trainer = Own(make_cfg("TEST.METRIC", "jaccard", "MODEL.HEADS.NAME", "EmbeddingHead", "SOLVER.MAX_EPOCH", 1))
    trainer.train()


def test_more_ranks_than_images(make_cfg, monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 16)
    with pytest.raises(ValueError, match=r"SOLVER.IMS_PER_BATCH 8 .*16 ranks"):
        config.check_rules(make_cfg(), "data.build:build_reid_train_loader")


def test_sync_bn_on_cpu_ranks(make_cfg, monkeypatch):
    cfg = make_cfg("MODEL.BACKBONE.NORM", "syncBN", "MODEL.DEVICE", "cpu")
    config.check_rules(cfg, "modeling.meta_arch.build:build_model")  # one rank is not told from BN
    assert get_norm("syncBN", 3)(torch.randn(2, 3, 4, 4)).isfinite().all()
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"MODEL.BACKBONE.NORM is syncBN"):
        config.check_rules(cfg, "modeling.meta_arch.build:build_model")


def test_layers_to_freeze(make_cfg, make_trainer):
    with pytest.raises(ValueError, match="MODEL.FREEZE_LAYERS has 'bakbone'.*backbone, heads"):
        make_trainer("MODEL.FREEZE_LAYERS", ["bakbone"], "SOLVER.FREEZE_ITERS", 2)
    make_trainer("MODEL.FREEZE_LAYERS", ["backbone"], "SOLVER.FREEZE_ITERS", 2)


@pytest.mark.parametrize("entry_point", [DefaultTrainer, lambda cfg: default_setup(cfg, None)])
def test_an_output_folder_that_cannot_be(make_cfg, tmp_path, entry_point):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"OUTPUT_DIR .*file/out"):
        entry_point(make_cfg("OUTPUT_DIR", str(tmp_path / "file" / "out")))


def test_ranks_that_are_not_there(monkeypatch):
    with pytest.raises(ValueError, match="--num-gpus is -1"):
        launch(print, -1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="--num-gpus is 2.* 1 GPU"):
        launch(print, 2)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"- a\n",
        b"MODEL: [\n",
        b"\xff\xfe\x00binary",
        b"MODEL:\n",
        b"MODEL:\n  HEADS: 3\n",
        b"SOLVER:\n  BASE_LR: null\n",
    ],
)
def test_files_that_hold_no_config(tmp_path, text):
    (tmp_path / "bad.yml").write_bytes(text)
    with pytest.raises(ValueError, match=r"bad\.yml|MODEL|SOLVER\.BASE_LR"):
        get_cfg().merge_from_file(str(tmp_path / "bad.yml"))


def test_an_empty_node_of_ours(tmp_path):
    (tmp_path / "bad.yml").write_text("MODEL:\n  MBJ:\n")
    with pytest.raises(ValueError, match=r"MODEL\.MBJ must hold"):
        get_cfg().merge_from_file(str(tmp_path / "bad.yml"))


@pytest.mark.parametrize("path", ["", "nowhere.pth"])
def test_weights_of_a_backbone_that_cannot_be_had(make_cfg, monkeypatch, path):
    def offline(url, *_, **__):
        raise ConnectionError(url)

    monkeypatch.setattr("fastreid.modeling.backbones.resnet.init_pretrained_weights", offline)
    cfg = make_cfg("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.BACKBONE.PRETRAIN", True)
    cfg.MODEL.BACKBONE.PRETRAIN_PATH = path
    with pytest.raises(ValueError, match=path or "MODEL.BACKBONE.PRETRAIN False"):
        build_model(cfg)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["output/model_0003.pth"], "--resume"),
        (["output/model_0003.pth", "SOLVER.MAX_EPOCH"], "--resume"),
        (["SOLVER.MAX_EPOCH"], "SOLVER.MAX_EPOCH"),
        (["SOLVER.MAX_EPOCHS", 3], "did you mean SOLVER.MAX_EPOCH"),
        (["SOLVER.BASE_LR", "fast"], "SOLVER.BASE_LR"),
    ],
)
def test_options(words, said):
    with pytest.raises(ValueError) as error:
        get_cfg().merge_from_list(words)
    assert said in str(error.value)
