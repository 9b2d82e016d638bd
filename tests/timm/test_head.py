import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from mbj_plugin.timm import attach_head
from mbj_plugin.timm.classifiers import same_map
from mbj_plugin.timm.head import detach_head
from mbj_plugin.tools.finished_run import recorded_inputs

# name, image size, layers of the classifier: linear, convolution, two heads that are averaged
MODELS = [("resnet18", 32, 1), ("dla46_c", 64, 1), ("deit_tiny_distilled_patch16_224", 224, 2)]


@pytest.mark.parametrize(("name", "size", "layers"), MODELS)
def test_features_and_weight_give_the_logits(name, size, layers):
    model = timm.create_model(name, num_classes=5).train()
    keys, parameters = list(model.state_dict()), list(model.parameters())
    heads = attach_head(model)
    assert list(model.state_dict()) == keys
    assert not any(value.requires_grad for value in heads.layers[0].state_dict().values())
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert len(heads.layers) == layers
    logits = model(torch.randn(2, 3, size, size))
    features, _ = heads.pop_recorded()
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
        heads.pop_recorded()


def test_a_recorded_input_is_taken_once_and_the_model_can_be_copied():
    model = timm.create_model("resnet32_cifar")
    heads = attach_head(model)
    model(torch.zeros(2, 3, 32, 32))
    heads.pop_recorded()
    copy.deepcopy(model)
    with pytest.raises(ValueError, match="was not called"):
        heads.pop_recorded()


@pytest.mark.parametrize("model", [timm.create_model("resnet18", num_classes=0), torch.nn.Linear(2, 2)])
def test_no_classifier(model):
    with pytest.raises(ValueError, match=f"classifier of {type(model).__name__}"):
        attach_head(model)


class Model(nn.Module):
    """Any layers as the classifier of 3 classes, their logits averaged."""

    def __init__(self, *layers, num_classes=3):
        super().__init__()
        self.layers, self.num_classes = nn.ModuleList(layers), num_classes

    def get_classifier(self):
        return self.layers[0] if len(self.layers) == 1 else tuple(self.layers)

    def forward(self, *inputs):
        return sum(layer(x) for layer, x in zip(self.layers, inputs, strict=True)) / len(self.layers)


LAYERS = {
    "linear": ([nn.Linear(4, 3)], [(5, 4)]),
    "no bias": ([nn.Linear(4, 3, bias=False)], [(5, 4)]),
    "convolution": ([nn.Conv2d(4, 3, 1)], [(5, 4, 1, 1)]),
    "two": ([nn.Linear(4, 3), nn.Linear(6, 3)], [(5, 4), (5, 6)]),
    "two without bias": ([nn.Linear(4, 3, bias=False), nn.Linear(6, 3, bias=False)], [(5, 4), (5, 6)]),
}


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_both_classifiers_are_the_maps_that_they_say(kind, own):
    layers, shapes = LAYERS[kind]
    model, inputs = copy.deepcopy(Model(*layers)), [torch.randn(shape, requires_grad=True) for shape in shapes]
    heads = attach_head(model, own)
    assert (heads.num_classes, heads.dim, heads.device.type) == (3, 10 if len(shapes) == 2 else 4, "cpu")
    assert len(heads.parameter_pairs) == (len(list(copy.deepcopy(Model(*layers)).parameters())) if own else 0)
    with torch.no_grad():
        for memory, batch in heads.parameter_pairs:
            assert torch.equal(memory, batch) and memory is not batch
            batch.add_(torch.randn_like(batch))
    output = model(*inputs)
    features, memory_output = heads.pop_recorded()
    assert torch.equal(features, torch.cat([x.flatten(1) for x in inputs], dim=1))
    torch.testing.assert_close(F.linear(features, *heads.affine(batch=True)), output.flatten(1))
    if not own:
        assert memory_output is None
        return
    torch.testing.assert_close(memory_output, F.linear(features, *heads.affine()))
    memory_output.sum().backward()
    assert all(x.grad is None for x in inputs)  # the features never feel the memory's classifier
    assert all(memory.grad is not None and batch.grad is None for memory, batch in heads.parameter_pairs)
    assert all(layer.recorder.pop() == (None, None) for layer in heads.layers)


@pytest.mark.parametrize("shape", [(2, 5, 4), (2, 1, 4), (2, 4, 2, 2)])
def test_more_than_one_vector_for_an_image_is_refused(shape):
    model = Model(nn.Conv2d(4, 3, 1) if len(shape) == 4 else nn.Linear(4, 3))
    heads = attach_head(model)
    model(torch.ones(shape))
    with pytest.raises(ValueError, match="more than one vector per image"):
        heads.pop_recorded()


def test_which_layer_is_the_classifier():
    hidden, last = nn.Linear(4, 4), nn.Linear(4, 3)
    model = Model(nn.Sequential(hidden, nn.Conv2d(3, 3, 3), nn.Conv2d(3, 4, 1), last))
    assert attach_head(model, True).layers == attach_head(model, True).layers == (last,)
    convolution = nn.Conv2d(4, 3, (1, 1))
    assert attach_head(Model(nn.Sequential(nn.Conv2d(4, 3, (1, 3)), convolution))).layers == (convolution,)
    assert attach_head(Model(only := nn.Linear(4, 9), num_classes=None)).layers == (only,)
    with pytest.raises(ValueError, match="gives Conv2d"):
        attach_head(Model(nn.Conv2d(4, 3, 3)))


def test_layers_that_record_already_are_made_alike():
    first, second = nn.Linear(4, 3), nn.Linear(4, 3)
    attach_head(Model(first), True)
    model = Model(first, second)
    attach_head(model, True)
    assert [type(layer.batch_classifier) for layer in (first, second)] == [nn.Linear] * 2
    attach_head(model, False)
    assert not hasattr(first, "batch_classifier") and not hasattr(second, "batch_classifier")
    model(torch.ones(2, 4), torch.ones(2, 4))
    attach_head(model, True)
    assert [type(layer.batch_classifier) for layer in (first, second)] == [nn.Linear] * 2
    model(torch.ones(2, 4), torch.ones(2, 4))
    detach_head(model)
    assert type(first) is nn.Linear and vars(first).keys() == vars(nn.Linear(4, 3)).keys()


def test_one_layer_is_read_without_a_copy():
    model, x = Model(nn.Linear(4, 3)), torch.ones(2, 4)
    heads = attach_head(model, True)
    model(x)
    assert heads.pop_recorded()[0].data_ptr() == x.data_ptr()
    assert heads.affine()[1] is model.layers[0].bias


def test_a_hook_of_the_layer_is_called_once():
    layer, called = nn.Linear(4, 3), []
    for register in (layer.register_forward_hook, layer.register_forward_pre_hook):
        register(lambda *args: called.append(1))
    for register in (layer.register_full_backward_hook, layer.register_full_backward_pre_hook):
        register(lambda *args: called.append(1))
    model = Model(layer)
    attach_head(model, True)
    model(torch.ones(2, 4, requires_grad=True)).sum().backward()
    assert len(called) == 4


@pytest.mark.parametrize(("change", "same"), [(1.0, True), (1.04, True), (1.2, False), (0.8, False), (-1.0, False)])
def test_the_same_map_up_to_half_precision(change, same):
    weight, bias, x = torch.randn(3, 4), torch.randn(3), torch.randn(5, 4)
    assert same_map(weight, bias, x, change * F.linear(x, weight, bias)) == same
    assert same_map(weight.bfloat16(), None, x.bfloat16(), change * F.linear(x, weight)) == same
    assert not same_map(weight, bias, x, F.linear(x, weight, bias)[:, :2])
    # A logit near 0 is as wrong as the largest one may be.
    for size in (1.0, 10.0):
        assert same_map(torch.eye(2), None, torch.tensor([[size, 0.0]]), torch.tensor([[size, 0.04 * size]]))


def test_inputs_are_recorded_while_they_are_asked_for():
    linear, convolution = nn.Linear(4, 3), nn.Conv2d(4, 3, 1)
    rows, maps = torch.randn(2, 4), torch.randn(2, 4, 1, 1)
    with recorded_inputs([linear, convolution]) as inputs:
        linear(rows), convolution(maps)
    assert torch.equal(inputs[0], rows) and torch.equal(inputs[1], maps.flatten(1)) and len(inputs) == 2
    linear(rows)
    assert len(inputs) == 2
