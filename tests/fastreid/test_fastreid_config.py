"""MODEL.MBJ: what is accepted, what is refused and how, and that a dumped config reads back the same."""

import math

import pytest
import torch
from fastreid.config import CfgNode, get_cfg

from benchmarks.retrieval.settings import load_settings
from mbj_plugin.checks import RANGES
from mbj_plugin.fastreid import config
from mbj_plugin.fastreid.config import DEFAULTS, checked, read_settings
from mbj_plugin.settings import Memories
from mbj_plugin.tools.fastreid.train import find_config
from mbj_plugin.tools.files import config_folder


def merged(*opts):
    cfg = get_cfg()
    cfg.merge_from_list(list(opts))
    return cfg


def test_defaults_are_the_papers_but_for_eta_and_norm():
    settings = read_settings(get_cfg())
    assert (settings.memory, settings.size, settings.beta) == ("prototype", 3500, 1.5)
    assert (settings.scale, settings.margin) == (16.0, 0.2)
    # Those two are of mbj_w on the results page.
    chosen = load_settings().methods["mbj_w"]["MBJ"]
    assert (settings.eta, settings.norm) == (chosen["ETA"], chosen["NORM"]) == (3, "max")


@pytest.mark.parametrize(
    ("key", "given", "read"),
    [
        ("ETA", 1, 1.0),
        ("ETA", "0.5", 0.5),
        ("SCALE", 30, 30.0),
        ("MARGIN", 0, 0.0),
        ("BETA", 2, 2.0),
        ("SIZE", 500.0, 500),
        ("START", "auto", "auto"),
        ("START", 0, 0),
        ("START", 1, 1),
        ("START", 0.99, 0.99),
        ("START", 1200, 1200),
        ("START", 0.25, 0.25),
        ("MOMENTUM", 0, 0.0),
        ("MEMORY", "both", "both"),
        ("NORM", "max", "max"),
    ],
)
def test_values_come_in_their_own_type(key, given, read, tmp_path):
    by_list = merged(f"MODEL.MBJ.{key}", given)
    (tmp_path / "leaf.yml").write_text(f"MODEL:\n  MBJ:\n    {key}: {given}\n")
    by_file = get_cfg()
    by_file.merge_from_file(str(tmp_path / "leaf.yml"))
    for cfg in (by_list, by_file):
        value = getattr(read_settings(cfg), key.lower())
        assert value == read and type(value) is type(read)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("SIZE", value) for value in (0, -1, 2.5, "many", True)],
        *[("ETA", value) for value in (-0.1, math.inf, math.nan, "auto", None)],
        *[("BETA", -1), ("NORM", "mean"), ("MEMORY", "weights"), ("MEMORY", "Prototype"), ("SCALE", 0), ("MARGIN", -1)],
        *[("START", value) for value in ("late", -1, 1.5)],
        *[("SIZE", 10**13), ("SIZE", 10**400), ("START", 10**13), ("START", 1.0), ("START", "1.0"), ("BETA", 101)],
        *[(key, 1e39) for key in ("ETA", "SCALE", "MARGIN", "BETA")],
        *[("MOMENTUM", 1), ("MOMENTUM", -0.1), ("SIZES", 3)],
    ],
)
def test_bad_keys_and_values_are_named(key, value):
    with pytest.raises(ValueError, match=rf"MODEL\.MBJ\.{key}\b"):
        merged(f"MODEL.MBJ.{key}", value)
    cfg = get_cfg()
    cfg.MODEL.MBJ[key] = value  # nothing checks an assignment, so the head does
    with pytest.raises(ValueError, match=rf"MODEL\.MBJ\.{key}\b"):
        read_settings(cfg)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("MEMORY", "weights", "one of feature, prototype, both, got 'weights'"),
        ("SIZE", 0, "a whole number from 1 to 10000000, got 0"),
        ("SIZE", 10**7 + 1, "a whole number from 1 to 10000000, got 10000001"),
        ("ETA", -1, "a number from 0 to 1e+06, got -1"),
        ("ETA", 1000001, "a number from 0 to 1e+06, got 1000001"),
        ("BETA", 100.5, "a number from 0 to 100, got 100.5"),
        ("NORM", "mean", "one of sum, max, got 'mean'"),
        ("MOMENTUM", 1, "a number from 0 to below 1, got 1"),
        ("SCALE", 0, "a number above 0 to 1e+06, got 0"),
        ("SCALE", 1000001, "a number above 0 to 1e+06, got 1000001"),
        ("MARGIN", 1000001, "a number from 0 to 1e+06, got 1000001"),
    ],
)
def test_what_a_value_must_be_is_said_to_the_letter(key, value, said):
    with pytest.raises(ValueError) as error:
        checked(key, value)
    assert str(error.value) == f"MODEL.MBJ.{key} must be {said}"


@pytest.mark.parametrize(
    ("key", "values"),
    [
        *[("SIZE", (1, 10**7)), ("ETA", (0, 1e6)), ("BETA", (0, 100)), ("MARGIN", (0, 1e6))],
        *[("MOMENTUM", (0, 1 - 2**-53)), ("SCALE", (5e-324, 1e6)), ("START", (0, 1, 2, 10**12, 1 - 2**-53, 5e-324))],
    ],
)
def test_the_ends_of_a_range_belong_to_it(key, values):
    for value in values:
        found = checked(key, value)
        assert found == value
        assert type(found) is type(value) or key not in ("SIZE", "START")


def test_values_of_the_command_line_are_text():
    cfg = merged("SOLVER.MAX_EPOCH", "7", "MODEL.MBJ.SIZE", "9")
    assert (cfg.SOLVER.MAX_EPOCH, cfg.MODEL.MBJ.SIZE) == (7, 9)


def test_a_file_whose_mbj_is_no_mapping(tmp_path):
    (tmp_path / "leaf.yml").write_text("MODEL:\n  MBJ: 3\n")
    with pytest.raises(ValueError, match=r"^MODEL\.MBJ must hold the keys MEMORY, ETA, .*got 3$"):
        get_cfg().merge_from_file(str(tmp_path / "leaf.yml"))


def test_a_merged_config_is_left_as_it_was():
    one, other = get_cfg(), merged("MODEL.MBJ.SIZE", 9, "SOLVER.MAX_EPOCH", 7)
    other.freeze()
    one.merge_from_other_cfg(other)
    assert (one.MODEL.MBJ.SIZE, one.SOLVER.MAX_EPOCH) == (9, 7) and not one.is_frozen()
    assert (other.MODEL.MBJ.SIZE, other.SOLVER.MAX_EPOCH) == (9, 7) and other.is_frozen()
    one.merge_from_other_cfg(CfgNode({"MODEL": CfgNode({"DEVICE": "meta"})}))  # what holds nothing of ours
    assert (one.MODEL.MBJ.SIZE, one.MODEL.DEVICE) == (9, "meta")
    before = CfgNode({"MODEL": CfgNode({"DEVICE": "cpu"})})  # a config that was made without the plugin
    with pytest.raises(ValueError, match="Non-existent config key: MODEL.MBJ"):
        before.merge_from_other_cfg(CfgNode({"MODEL": CfgNode({"MBJ": CfgNode({"SIZE": 3})})}))


@pytest.mark.parametrize(
    ("memory", "kinds"),
    [("prototype", ("prototype",)), ("feature", ("feature",)), ("both", ("feature", "prototype"))],
)
def test_memories_in_use(memory, kinds):
    assert read_settings(merged("MODEL.MBJ.MEMORY", memory)).kinds == kinds


def test_what_is_of_the_other_memory_is_left_out_and_said_once(monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(config.logger, "warning", said.append)
    config._does_nothing.cache_clear()
    for _ in range(2):
        cfg = merged("MODEL.MBJ.MEMORY", "feature", "MODEL.MBJ.MOMENTUM", 0.5, "MODEL.MBJ.MARGIN", 0.3)
        assert (read_settings(cfg).momentum, read_settings(cfg).margin) == (0, 0.2)
        assert read_settings(merged("MODEL.MBJ.SAMPLE", 5)).sample == 0
        both = merged("MODEL.MBJ.MEMORY", "both", "MODEL.MBJ.SAMPLE", 5, "MODEL.MBJ.MARGIN", 0.3)
        assert (read_settings(both).sample, read_settings(both).margin) == (5, 0.3)
    assert [line.partition(":")[0] for line in said] == [
        "MODEL.MBJ.MOMENTUM 0.5 does nothing",
        "MODEL.MBJ.MARGIN 0.3 does nothing",
        "MODEL.MBJ.SAMPLE 5 does nothing",
    ]


def test_a_config_from_before_the_plugin_has_the_defaults():
    cfg = get_cfg()
    del cfg.MODEL["MBJ"]
    assert read_settings(cfg) == read_settings(get_cfg())
    assert {key: getattr(read_settings(cfg), key.lower()) for key in DEFAULTS} == DEFAULTS


def test_a_bad_key_in_a_file_is_named(tmp_path):
    (tmp_path / "leaf.yml").write_text("MODEL:\n  MBJ:\n    SIEZ: 3\n")
    with pytest.raises(ValueError, match=r"MODEL\.MBJ\.SIEZ, did you mean MODEL\.MBJ\.SIZE"):
        get_cfg().merge_from_file(str(tmp_path / "leaf.yml"))


def test_other_keys_are_still_fast_reids_business():
    with pytest.raises(ValueError, match="Type mismatch"):
        merged("SOLVER.BASE_LR", "fast")
    with pytest.raises(ValueError, match=r"Non-existent key: MODEL\.MBJX\.SIZE"):
        merged("MODEL.MBJX.SIZE", 3)


def test_base_options_and_dump_round_trip(tmp_path):
    (tmp_path / "base.yml").write_text("MODEL:\n  MBJ:\n    ETA: 2\n    SIZE: 7\n    START: 0.5\n")
    (tmp_path / "leaf.yml").write_text("_BASE_: base.yml\nMODEL:\n  HEADS:\n    NAME: MBJHead\n  MBJ:\n    SIZE: 9\n")
    cfg = get_cfg()
    cfg.merge_from_file(str(tmp_path / "leaf.yml"))
    cfg.merge_from_list(["MODEL.MBJ.START", "auto", "MODEL.MBJ.BETA", "1"])
    (tmp_path / "config.yaml").write_text(cfg.dump())
    again = get_cfg()
    again.merge_from_file(str(tmp_path / "config.yaml"))
    assert again == cfg
    assert (again.MODEL.MBJ.SIZE, again.MODEL.MBJ.ETA, again.MODEL.MBJ.START) == (9, 2.0, "auto")


def test_frozen_configs_stay_frozen_and_defaults_stay_clean():
    cfg = merged("MODEL.MBJ.SIZE", 5)
    cfg.freeze()
    for one in (cfg, cfg.clone()):
        assert one.is_frozen() and one.MODEL.MBJ.is_frozen() and one.MODEL.MBJ.SIZE == 5
        with pytest.raises(AttributeError, match="immutable"):
            one.MODEL.MBJ.SIZE = 6
    assert dict(get_cfg().MODEL.MBJ) == DEFAULTS


@pytest.mark.parametrize("kind", ["prototype", "feature"])
def test_the_highest_values_stay_finite(kind):
    cfg = merged(
        *[
            value
            for key in ("eta", "beta", "scale", "margin")
            for value in (f"MODEL.MBJ.{key.upper()}", RANGES[key].high)
        ]
    )
    cfg.MODEL.MBJ.NORM = "max"
    cfg.MODEL.MBJ.MEMORY = kind
    memory = Memories(read_settings(cfg), None, 4)[kind]
    memory.set_class_counts(torch.ones(3))
    features, weight, labels = torch.randn(6, 4), torch.randn(3, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    losses = [memory(features.requires_grad_(), labels, weight.requires_grad_()) for _ in range(4)]
    losses[-1].backward()
    grad = features.grad if kind == "prototype" else weight.grad
    assert losses[-1].isfinite() and grad.isfinite().all() and grad.any()


def test_shipped_configs_are_the_papers_settings():
    names = sorted(path.stem for path in config_folder("fastreid").glob("*_S5-*.yml"))
    sets = [f"{data}_LT_H{head}_S5" for data in ("Market1501", "DukeMTMC") for head in (100, 50, 20)]
    assert names == sorted(f"{name}-{arm}" for name in sets for arm in ("MBJ", "Baseline"))
    for name in names:
        cfg = get_cfg()
        cfg.merge_from_file(find_config(f"{name}.yml"))
        solver, heads, mbj = cfg.SOLVER, cfg.MODEL.HEADS, cfg.MODEL.MBJ
        assert (cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.DEPTH) == ("build_resnet_backbone", "50x")
        assert cfg.MODEL.BACKBONE.PRETRAIN and cfg.MODEL.LOSSES.NAME == ("CrossEntropyLoss",)
        assert (solver.IMS_PER_BATCH, solver.OPT, solver.BASE_LR, solver.MAX_EPOCH) == (64, "Adam", 3.5e-4, 120)
        assert (solver.SCHED, solver.STEPS, solver.GAMMA) == ("MultiStepLR", [40, 70], 0.1)
        assert (heads.CLS_LAYER, heads.SCALE, heads.MARGIN) == ("CosSoftmax", 16, 0.2)
        assert (mbj.MEMORY, mbj.SIZE, mbj.BETA, mbj.NORM, mbj.MOMENTUM) == ("prototype", 3500, 1.5, "sum", 0)
        assert pytest.approx(1 / 7, abs=1e-6) == mbj.ETA and (mbj.SCALE, mbj.MARGIN) == (16, 0.2)
        assert cfg.DATALOADER.SAMPLER_TRAIN == "TrainingSampler"
        assert (heads.NAME == "MBJHead") == name.endswith("-MBJ")
        assert (name.rpartition("-")[0],) == cfg.DATASETS.NAMES


def test_an_unknown_config_file_lists_those_there_are():
    with pytest.raises(ValueError, match=r"nothing\.yml.*Base-MBJ"):
        find_config("nothing.yml")
