import pytest
import timm
import torch
from timm.models._features_fx import create_feature_extractor, get_graph_node_names

import mbj_plugin.timm


def test_resnet32_cifar_is_the_paper_s():
    model = timm.create_model("resnet32_cifar", num_classes=10)
    assert sum(p.numel() for p in model.parameters()) == 464_154
    assert sum(isinstance(m, torch.nn.Conv2d | torch.nn.Linear) for m in model.modules()) == 32
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert model.default_cfg["input_size"] == (3, 32, 32)


def test_it_shrinks_and_loses_its_head():
    model = timm.create_model("resnet32_cifar", depth=8, width=4, in_chans=1, num_classes=7)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 7)
    assert model.forward_head(model.forward_features(torch.zeros(2, 1, 8, 8)), pre_logits=True).shape == (2, 16)
    model.reset_classifier(3)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    assert timm.create_model("resnet32_cifar", num_classes=0)(torch.zeros(2, 3, 32, 32)).shape == (2, 64)


def test_shortcut_subsamples_and_pads():
    block = mbj_plugin.timm.models.BasicBlock(2, 4, stride=2).eval()
    torch.nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 2, 4, 4)
    out = block(x)
    assert torch.equal(out[:, 1:3], x[:, :, ::2, ::2])
    assert out[:, [0, 3]].eq(0).all()


@pytest.mark.parametrize("depth", [2, 30, 33])
def test_bad_depth(depth):
    with pytest.raises(ValueError, match=f"6n \\+ 2.*{depth}"):
        timm.create_model("resnet32_cifar", depth=depth)


def test_timm_s_own_checks_of_a_model_pass():
    """As in timm's tests/test_models.py: the default cfg, features_only, FX, TorchScript, and both together."""
    images = torch.rand(2, 3, 32, 32)
    model = timm.create_model("resnet32_cifar", depth=8, width=4).eval()
    assert model.forward_features(images).shape[2:] == model.default_cfg["pool_size"]
    assert model.state_dict()[model.default_cfg["classifier"] + ".weight"].shape == (10, 16)
    output = model(images)
    assert torch.equal(torch.jit.script(model)(images), output)
    graph = create_feature_extractor(model, [get_graph_node_names(model)[1][-1]])
    for traced in (graph, torch.jit.script(graph), torch.fx.symbolic_trace(model)):
        result = traced(images)
        assert torch.equal(*(result.values() if isinstance(result, dict) else [result]), output)
    stages = timm.create_model("resnet32_cifar", depth=8, width=4, features_only=True).eval()
    stages.load_state_dict(model.state_dict(), strict=False)
    features = stages(images)
    assert [tuple(f.shape[1:]) for f in features] == [(4, 32, 32), (8, 16, 16), (16, 8, 8)]
    assert list(zip(stages.feature_info.channels(), stages.feature_info.reduction(), strict=True)) == [
        (f.shape[1], 32 // f.shape[2]) for f in features
    ]
    assert torch.equal(model.forward_head(features[-1]), output)
    model.reset_classifier(0, "")
    assert torch.equal(model(images), features[-1])


def test_dropout_is_of_training_alone():
    torch.manual_seed(0)
    model, images = timm.create_model("resnet32_cifar", depth=8, width=4, drop_rate=0.9), torch.rand(4, 3, 8, 8)
    features = model.forward_features(images)
    assert (model.forward_head(features, pre_logits=True) == 0).sum() > 32
    model.eval()
    assert torch.equal(model.forward_head(features, pre_logits=True), model.global_pool(features))
