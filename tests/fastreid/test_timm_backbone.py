"""timm's models as backbones: five families, sizes, weights, whole runs."""

import importlib.util
import sys

import pytest
import torch
from fastreid.config import get_cfg
from fastreid.engine import DefaultTrainer
from fastreid.modeling.backbones import BACKBONE_REGISTRY, build_backbone
from fastreid.modeling.meta_arch import build_model

from mbj_plugin.fastreid import timm_backbone
from mbj_plugin.fastreid.timm_backbone import build_timm_backbone

timm = pytest.importorskip("timm", reason="timm is not installed")
FILE = ("MODEL.BACKBONE.PRETRAIN", True, "MODEL.BACKBONE.PRETRAIN_PATH")


@pytest.fixture
def tiny():
    """tiny(name, KEY, value, ...): a config of 64 x 32 pixels."""

    def make(name, *opts):
        cfg = get_cfg()
        cfg.merge_from_list(
            [
                *("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.BACKBONE.DEPTH", name, "MODEL.DEVICE", "cpu"),
                *("INPUT.SIZE_TRAIN", [64, 32], "INPUT.SIZE_TEST", [64, 32], "MODEL.HEADS.NUM_CLASSES", 5, *opts),
            ]
        )
        return cfg

    return make


@pytest.mark.parametrize(
    ("name", "with_stride", "without"),
    [
        ("resnet10t", (512, 2, 1), (512, 4, 2)),
        ("efficientnet_lite0", (1280, 2, 1), (1280, 4, 2)),
        ("convnext_atto", (320, 2, 1), (320, 4, 2)),
        ("vit_tiny_patch16_224", (192, 4, 2), (192, 4, 2)),  # has no last stride
        ("mobilenetv3_small_050", (288, 2, 1), (288, 2, 1)),  # nor has timm's
        ("swin_tiny_patch4_window7_224", (768, 2, 1), (768, 2, 1)),  # channels last
        ("ghostnet_050", (480, 2, 1), (480, 2, 1)),  # takes the argument and refuses it
    ],
)
def test_families_give_a_map_whose_channels_the_head_finds(tiny, name, with_stride, without):
    for last_stride, shape in ((2, with_stride), (1, without)):
        cfg = tiny(name, "MODEL.BACKBONE.LAST_STRIDE", last_stride, "MODEL.BACKBONE.FEAT_DIM", 7)
        cfg.freeze()
        backbone = build_backbone(cfg)
        assert backbone.training and tuple(backbone(torch.rand(2, 3, 64, 32)).shape[1:]) == shape
        assert shape[0] == cfg.MODEL.BACKBONE.FEAT_DIM and cfg.is_frozen()


@pytest.mark.parametrize(
    ("name", "size"),
    [("levit_128s", 224), ("tiny_vit_5m_224", 64), ("efficientformerv2_s0", 64), ("efficientvit_m0", 64)],
)
def test_what_gets_a_gradient_in_training_is_trained(tiny, name, size):
    """Some keep what they computed in evaluation: tried there alone, their attention biases stayed frozen for good."""
    backbone = build_backbone(tiny(name, "INPUT.SIZE_TRAIN", [size] * 2, "INPUT.SIZE_TEST", [size] * 2))
    trained = {key for key, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert all(not buffer.any() for key, buffer in backbone.named_buffers() if key.endswith("num_batches_tracked"))
    backbone.requires_grad_(True)(torch.rand(2, 3, size, size)).square().sum().backward()
    assert trained == {key for key, parameter in backbone.named_parameters() if parameter.grad is not None}
    assert any("attention_bias" in key for key in trained)


def test_a_norm_behind_the_pooling_is_that_of_the_tokens(tiny):
    """BEiT and EVA-02 are trained with it; without the pooling timm makes another one."""
    backbone = build_backbone(tiny("eva02_tiny_patch14_224")).eval()
    torch.nn.init.constant_(backbone.model.fc_norm.weight, 3.0)
    images = torch.rand(2, 3, 64, 32)
    tokens = backbone.model.fc_norm(backbone.model.forward_features(images)[:, 1:])
    torch.testing.assert_close(backbone(images).flatten(2).transpose(1, 2), tokens)
    assert backbone.model.fc_norm.weight.requires_grad


def test_a_vits_map_is_its_patch_tokens(tiny):
    backbone = build_backbone(tiny("vit_tiny_patch16_224")).eval()
    images = torch.rand(2, 3, 64, 32)
    tokens = backbone.model.forward_features(images)[:, 1:]
    torch.testing.assert_close(backbone(images).flatten(2).transpose(1, 2), tokens)


def test_a_vit_is_tested_at_another_size(tiny):
    model = build_model(tiny("vit_tiny_patch16_224", "INPUT.SIZE_TEST", [64, 64])).eval()
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 192)
    with pytest.raises(ValueError, match="takes images of one size: set INPUT.SIZE_TEST to INPUT.SIZE_TRAIN, 64 x 32"):
        build_model(tiny("mixer_s32_224", "INPUT.SIZE_TEST", [64, 64]))


@pytest.fixture(scope="module", params=["resnet10t", "vit_tiny_patch16_224", "eva02_tiny_patch14_224"])
def weights(request, tmp_path_factory):
    """(name, path, weights) of a model with timm's own input size and classifier."""
    torch.manual_seed(9)
    model = timm.create_model(request.param)
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"state_dict": model.state_dict()}, path)
    return request.param, str(path), model


def test_weights_from_a_file(tiny, weights):
    name, path, model = weights
    cfg = tiny(name, *FILE, path)
    torch.manual_seed(0)
    backbone = build_backbone(cfg).model
    after = torch.rand(1)
    theirs = model.state_dict()
    for key, value in backbone.named_parameters():
        if key != "pos_embed":  # resampled to another number of patches
            assert torch.equal(value, theirs[key]), key
    torch.manual_seed(0)
    cfg.MODEL.BACKBONE.PRETRAIN = False
    build_backbone(cfg)
    assert torch.equal(torch.rand(1), after)  # the head's weights are the same with and without


def test_weights_by_timms_own_way(tiny, monkeypatch):
    state = timm.create_model("resnet10t", num_classes=0).state_dict()
    asked = []
    load = lambda name, **options: asked.append(name) or dict(state)  # noqa: E731
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", load)
    backbone = build_backbone(tiny("resnet10t.c3_in1k", "MODEL.BACKBONE.PRETRAIN", True))
    assert asked == ["timm/resnet10t.c3_in1k"]
    assert torch.equal(backbone.model.layer4[0].conv1.weight, state["layer4.0.conv1.weight"])


def test_pixels_that_the_weights_did_not_see_are_a_warning(tiny, weights, monkeypatch):
    name, path, _ = weights
    if name.startswith("eva"):
        return
    half = ("MODEL.PIXEL_MEAN", [127.5] * 3, "MODEL.PIXEL_STD", [127.5] * 3)
    for pixels, fits in (((), name == "resnet10t"), (half, name != "resnet10t")):
        said: list[str] = []
        monkeypatch.setattr(timm_backbone.logger, "warning", said.append)
        build_backbone(tiny(name, *FILE, path, *pixels))
        said = [message for message in said if "MODEL.PIXEL_MEAN" in message]
        assert fits == (not said), said
    if name != "resnet10t":
        return
    assert "set MODEL.PIXEL_MEAN [123.675, 116.28, 103.53] MODEL.PIXEL_STD [58.395, 57.12, 57.375]" in said[0]


def _bad_file(tmp_path):
    (tmp_path / "bad.pth").write_bytes(b"half a file")
    return (*FILE, str(tmp_path / "bad.pth"))


def _file_without(ending):
    def write(tmp_path):
        state = timm.create_model("resnet10t").state_dict()
        torch.save({key: value for key, value in state.items() if not key.endswith(ending)}, tmp_path / "part.pth")
        return (*FILE, str(tmp_path / "part.pth"))

    return write


def _other_models_file(tmp_path):
    torch.save({"layer1.weight": torch.zeros(3, 3)}, tmp_path / "other.pth")
    return (*FILE, str(tmp_path / "other.pth"))


@pytest.mark.parametrize(
    ("name", "opts", "message"),
    [
        ("resnet5O", (), r"MODEL.BACKBONE.DEPTH must name a model of timm .* got 'resnet5O': did you mean resnet50\?"),
        ("50x", (), "got '50x': timm.list_models"),
        ("resnet10t.c4_in1k", (), r"got 'resnet10t.c4_in1k': did you mean resnet10t.c3_in1k\?"),
        ("nest_tiny", (), r"nest_tiny gives no map of images of 64 x 32, INPUT.SIZE_TRAIN \(.*square inputs"),
        ("resnet10t", ("MODEL.BACKBONE.WITH_IBN", True), "WITH_IBN True is for fast-reid's own backbones"),
        ("resnet10t", ("MODEL.META_ARCHITECTURE", "MGN"), "MGN takes fast-reid's ResNet apart"),
        (
            "resnet10t",
            ("MODEL.BACKBONE.PRETRAIN", True, "MODEL.BACKBONE.PRETRAIN_PATH", "no.pth"),
            "no.pth is not there",
        ),
        ("resnet10t", _bad_file, r"bad.pth holds no weights that can be loaded into timm's resnet10t \("),
        ("resnet10t", _file_without("bn1.weight"), "lack 5 of the .* such as bn1.weight"),
        ("resnet10t", _file_without("running_var"), "lack 14 of the .* such as conv1.1.running_var"),
        ("resnet10t", _other_models_file, "lack .* tensors of timm's resnet10t, such as conv1.0"),
    ],
)
def test_what_cannot_be(tiny, tmp_path, name, opts, message):
    with pytest.raises(ValueError, match=message) as raised:
        build_timm_backbone(tiny(name, *(opts(tmp_path) if callable(opts) else opts)))
    assert "\n" not in str(raised.value)


def test_weights_that_cannot_be_had(tiny, monkeypatch):
    def offline(*arguments, **options):
        raise OSError("no route to the hub\nand more")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    for name in ("resnet10t", "regnetz_005"):  # the second has none
        with pytest.raises(ValueError, match="timm has no weights that can be loaded.*PRETRAIN_PATH, or set"):
            build_timm_backbone(tiny(name, "MODEL.BACKBONE.PRETRAIN", True))


def test_the_exported_copy_beside_the_plugin():
    """docs/deploy.md tells people to import it."""
    spec = importlib.util.spec_from_file_location("exported_backbone", timm_backbone.__file__)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert BACKBONE_REGISTRY.get("build_timm_backbone") is build_timm_backbone


def test_without_timm(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModuleNotFoundError, match="build_timm_backbone needs timm: pip install timm"):
        build_timm_backbone(tiny("resnet10t"))


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_a_run_trains_evaluates_and_resumes(make_cfg, name, tmp_path):
    opts = ("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.BACKBONE.DEPTH", name)
    (tmp_path / "out").mkdir()
    trainer = DefaultTrainer(make_cfg(*opts, "SOLVER.MAX_EPOCH", 1, "TEST.EVAL_PERIOD", 1))
    before = {key: value.clone() for key, value in trainer.model.backbone.named_parameters()}
    assert 0 <= trainer.train()["mAP"] <= 100
    still = [key for key, value in trainer.model.backbone.named_parameters() if torch.equal(value, before[key])]
    assert not [key for key in still if not key.startswith("model.conv_head")]  # behind the map
    assert name != "mobilenetv3_small_050" or len(still) == 2
    resumed = DefaultTrainer(make_cfg(*opts))
    resumed.resume_or_load(resume=True)
    for key, value in trainer.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value), key
    assert resumed.start_epoch == 1 and 0 <= resumed.train()["mAP"] <= 100
