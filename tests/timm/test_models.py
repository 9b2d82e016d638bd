import pytest
import timm
import torch

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
