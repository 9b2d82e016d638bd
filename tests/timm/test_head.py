import copy

import pytest
import timm
import torch
import torch.nn.functional as F

from mbj_plugin.timm import attach_head

# name, image size, layers of the classifier: linear, convolution, two heads that are averaged
MODELS = [("resnet18", 32, 1), ("dla46_c", 64, 1), ("deit_tiny_distilled_patch16_224", 224, 2)]


@pytest.mark.parametrize(("name", "size", "layers"), MODELS)
def test_features_and_weight_give_the_logits(name, size, layers):
    model = timm.create_model(name, num_classes=5).train()
    keys, parameters = list(model.state_dict()), list(model.parameters())
    heads = attach_head(model)
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert len(heads.layers) == layers
    logits = model(torch.randn(2, 3, size, size))
    features, _ = heads.take()
    assert features.shape == (2, heads.dim)
    torch.testing.assert_close(F.linear(features, *heads.affine()), logits)


def test_attaching_twice_is_harmless():
    model = timm.create_model("resnet32_cifar")
    first, second = attach_head(model), attach_head(model)
    assert first.layers == second.layers


def test_nothing_is_recorded_out_of_training():
    model = timm.create_model("resnet32_cifar")
    heads = attach_head(model)
    model.eval()
    model(torch.zeros(2, 3, 32, 32))
    model.train()
    with torch.no_grad():
        model(torch.zeros(2, 3, 32, 32))
    with pytest.raises(ValueError, match="was not called"):
        heads.take()


def test_a_recorded_input_is_taken_once_and_the_model_can_be_copied():
    model = timm.create_model("resnet32_cifar")
    heads = attach_head(model)
    model(torch.zeros(2, 3, 32, 32))
    heads.take()
    copy.deepcopy(model)
    with pytest.raises(ValueError, match="was not called"):
        heads.take()


@pytest.mark.parametrize("model", [timm.create_model("resnet18", num_classes=0), torch.nn.Linear(2, 2)])
def test_no_classifier(model):
    with pytest.raises(ValueError, match=f"classifier of {type(model).__name__}"):
        attach_head(model)
