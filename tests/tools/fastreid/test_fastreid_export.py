"""A run's config and weights in fast-reid without the plugin."""

import pytest
import torch
import yaml
from fastreid.config import get_cfg
from fastreid.engine import DefaultPredictor
from fastreid.modeling.meta_arch import build_model

from mbj_plugin.fastreid.collect import mbj_heads
from mbj_plugin.tools.fastreid import export

# fast-reid as it is, with no more than what its import lacks on today's Python and torch.
PLAIN = """
import collections, collections.abc, sys, types
collections.Mapping = collections.abc.Mapping
sys.modules["torch._six"] = types.ModuleType("torch._six")
sys.modules["torch._six"].string_classes = str
import torch
from fastreid.config import get_cfg
from fastreid.engine import DefaultPredictor
images = torch.load("images.pth")
for folder in sys.argv[1:]:
    sys.path.insert(0, folder)
    try:
        import timm_backbone
    except ModuleNotFoundError as error:
        assert error.name == "timm_backbone"
    cfg = get_cfg()
    cfg.merge_from_file(folder + "/config.yaml")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu"])
    torch.save(DefaultPredictor(cfg)(images.clone()), folder + "/features.pth")
assert not any(name.startswith("mbj_plugin") for name in sys.modules)
"""


@pytest.fixture
def run(tmp_path, tiny_opts):
    """A run's folder as it is left, of OSNet with both memories."""
    folder = tmp_path / "run"
    folder.mkdir()
    cfg = get_cfg()
    losses = ("MODEL.LOSSES.NAME", "('CrossEntropyLoss','MBJLoss')")
    memory = ("MODEL.MBJ.MEMORY", "both", "MODEL.MBJ.MOMENTUM", 0.5)
    cfg.merge_from_list([*tiny_opts, *losses, *memory, "MODEL.HEADS.NUM_CLASSES", 24, "MODEL.DEVICE", "cpu"])
    (folder / "config.yaml").write_text(cfg.dump())
    model = build_model(cfg)
    torch.nn.init.normal_(model.heads.weight)
    assert mbj_heads(model)
    torch.save({"model": model.state_dict(), "epoch": 3}, folder / "model_final.pth")
    return folder


def test_the_same_features_without_the_plugin(run, command, tiny_opts, tmp_path, capsys):
    """Of OSNet, and of a backbone of timm's, which comes with its file."""
    pytest.importorskip("timm", reason="timm is not installed")
    other, cfg = tmp_path / "timm", get_cfg()
    backbone = ("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.BACKBONE.DEPTH", "mobilenetv3_small_050")
    cfg.merge_from_list([*tiny_opts, *backbone, "MODEL.HEADS.NUM_CLASSES", 24, "MODEL.DEVICE", "cpu"])
    other.mkdir()
    (other / "config.yaml").write_text(cfg.dump())
    torch.save({"model": build_model(cfg).state_dict()}, other / "model_final.pth")
    folders = [run / "plain", other / "plain"]
    export.main([str(run)])
    assert capsys.readouterr().out.splitlines() == [
        f"{run}/plain/config.yaml and {run}/plain/model_final.pth need no plugin"
    ]
    export.main([str(other)])
    assert f"{other}/plain/timm_backbone.py registers" in capsys.readouterr().out
    images = torch.randn(2, 3, 32, 16)
    torch.save(images, tmp_path / "images.pth")
    result = command("-c", PLAIN, *folders, cwd=tmp_path, path="")
    assert "not found in the model" not in result.stdout + result.stderr  # the memories are gone
    for folder in (run, other):
        cfg = get_cfg()
        cfg.merge_from_file(str(folder / "config.yaml"))
        cfg.MODEL.WEIGHTS = str(folder / "model_final.pth")
        assert torch.equal(torch.load(folder / "plain" / "features.pth"), DefaultPredictor(cfg)(images.clone()))
    plain = get_cfg()
    plain.merge_from_file(str(run / "plain" / "config.yaml"))
    assert plain.MODEL.HEADS.NAME == "EmbeddingHead" and plain.MODEL.LOSSES.NAME == ("CrossEntropyLoss",)


@pytest.mark.parametrize(
    ("break_it", "arguments", "said"),
    [
        (lambda run: (run / "config.yaml").unlink(), [], r"config.yaml is not there: .* model_final.pth"),
        (lambda run: None, ["--weights", "model_best.pth"], r"model_best.pth is not there"),
        (lambda run: (run / "config.yaml").write_text("MODEL: 3"), [], "not the config.yaml of a fast-reid run"),
        (lambda run: (run / "config.yaml").write_text("a: b: c"), [], "cannot read .*config.yaml"),
        (lambda run: (run / "model_final.pth").write_bytes(b"half"), [], "model_final.pth"),
        (lambda run: None, ["--output", "run"], "run holds files"),
    ],
)
def test_what_is_no_run(run, monkeypatch, break_it, arguments, said):
    monkeypatch.chdir(run.parent)
    break_it(run)
    with pytest.raises(SystemExit, match=said):
        export.main([str(run), *arguments])
    assert not (run / "plain").exists()


def test_the_run_stays_as_it_is(run):
    """By a path of its own a checkpoint was once written over."""
    before = {path: path.read_bytes() for path in run.iterdir()}
    export.main([str(run), "--weights", str(run / "model_final.pth")])
    with pytest.raises(SystemExit, match="plain holds files"):
        export.main([str(run)])
    assert before == {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert {path.name for path in (run / "plain").iterdir()} == {"config.yaml", "model_final.pth"}


def test_a_loss_by_its_name_alone_and_an_edition():
    text = (
        "MODEL: {HEADS: {NAME: MBJHead}, LOSSES: {NAME: CrossEntropyLoss}}\nDATASETS: {TESTS: [Market1501_LT_H20_S5]}"
    )
    config = export.plain_config(yaml.safe_load(text))
    assert config["MODEL"]["LOSSES"]["NAME"] == ["CrossEntropyLoss"] and config["DATASETS"]["TESTS"] == ["Market1501"]
