"""A classifier of the memory's own: what trains which of the two, what a checkpoint holds, what a copy is."""

import copy
import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import nn

from mbj_plugin import FeatureMemoryLoss
from mbj_plugin.timm import MBJLoss

COUNTS = [30, 10, 5]
ALL = {"beta": 0.0, "norm": "max"}


def small_model():
    return timm.create_model("resnet32_cifar", depth=8, width=4, num_classes=3)


def images(step, n=6):
    g = torch.Generator().manual_seed(step)
    return torch.randn(n, 3, 16, 16, generator=g), torch.randint(0, 3, (n,), generator=g)


def train(model, loss, steps, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    for step in steps:
        x, y = images(step)
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    return optimizer


def test_the_two_classifiers_are_trained_as_by_hand():
    model, reference = small_model(), small_model()
    reference.load_state_dict(model.state_dict())
    loss = MBJLoss(COUNTS, eta=2.0, start=1, **ALL).bind(model)
    train(model, loss, range(4))
    # By hand: a second linear layer on detached features, and the two lines of the recipe.
    second = copy.deepcopy(reference.fc)
    memory = FeatureMemoryLoss(COUNTS, reference.num_features, eta=2.0, start=1, **ALL)
    parameters = [*reference.parameters(), *second.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-3)
    for step in range(4):
        x, y = images(step)
        features = reference.forward_head(reference.forward_features(x), pre_logits=True)
        total = F.cross_entropy(reference.fc(features), y) + F.cross_entropy(second(features.detach()), y)
        total = total + memory(features, y, second.weight, second.bias)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    for key, value in reference.state_dict().items():
        if not key.startswith("fc."):
            assert torch.equal(model.state_dict()[key], value), key
    assert torch.equal(model.fc.weight, second.weight) and torch.equal(model.fc.bias, second.bias)
    assert torch.equal(model.fc.batch_classifier.weight, reference.fc.weight)
    assert not torch.equal(second.weight, reference.fc.weight)


def test_until_the_start_both_are_the_same_numbers():
    model = small_model()
    loss = MBJLoss(COUNTS, start=2, **ALL).bind(model)
    optimizer = train(model, loss, range(2))
    for own, batch in loss.heads.twins:
        assert torch.equal(own, batch)
    train(model, loss, range(2, 4), optimizer)
    assert not torch.equal(model.fc.weight, model.fc.batch_classifier.weight)


def test_the_value_is_equation_2_of_the_memory_classifier():
    model = small_model()
    loss = MBJLoss(COUNTS, eta=2.0, **ALL).bind(model)
    train(model, loss, range(3))
    x, y = images(3)
    value = loss(model(x), y)
    features = model.forward_head(model.forward_features(x), pre_logits=True)
    expected = F.cross_entropy(F.linear(features, model.fc.weight, model.fc.bias), y)
    torch.testing.assert_close(value - loss.parts["loss_memory"], expected)


def test_evaluation_and_state_dict_are_the_memory_classifier_s():
    model, stock = small_model(), small_model()
    keys = list(stock.state_dict())
    loss = MBJLoss(COUNTS, **ALL).bind(model)
    train(model, loss, range(3))
    assert list(model.state_dict()) == keys
    stock.load_state_dict(model.state_dict())
    x, _ = images(5)
    assert torch.equal(model.eval()(x), stock.eval()(x))
    assert torch.equal(stock.fc.weight, model.fc.weight)


def test_weights_that_are_loaded_start_both_classifiers():
    model, other = small_model(), small_model()
    loss = MBJLoss(COUNTS, **ALL).bind(model)
    train(model, loss, range(3))
    model.load_state_dict(other.state_dict())
    assert torch.equal(model.fc.weight, other.fc.weight)
    assert torch.equal(model.fc.batch_classifier.weight, other.fc.weight)
    with pytest.raises(RuntimeError, match='Missing key.*"fc.bias"'):
        model.load_state_dict({k: v for k, v in other.state_dict().items() if k != "fc.bias"})


def test_an_average_of_the_model_averages_the_memory_classifier():
    model = small_model()
    loss = MBJLoss(COUNTS, **ALL).bind(model)
    optimizer = train(model, loss, range(2))
    average = ModelEmaV3(model, decay=0.5)
    before = model.fc.weight.detach().clone()
    train(model, loss, range(2, 3), optimizer)
    average.update(model)
    torch.testing.assert_close(average.module.fc.weight, (before + model.fc.weight) / 2)


def test_two_heads_have_two_batch_classifiers():
    model = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, num_classes=3, depth=1)
    loss = MBJLoss(COUNTS, **ALL).bind(model)
    g = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        loss(model(torch.randn(4, 3, 32, 32, generator=g)), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
    assert len(loss.heads.twins) == 4
    assert all(own.grad is not None and batch.grad is not None for own, batch in loss.heads.twins)


def test_prototypes_alone_have_one_classifier():
    loss = MBJLoss(COUNTS, memory="prototype", **ALL).bind(small_model())
    assert loss.heads.twins == []


class ScaledLinear(nn.Linear):
    """Normalised weights, a scale: affine in its input, by weights that are not its parameter."""

    def forward(self, x):
        return 16 * F.linear(x, F.normalize(self.weight), self.bias)


class CosineLinear(nn.Linear):
    def forward(self, x):
        return 16 * F.linear(F.normalize(x), F.normalize(self.weight))


@pytest.mark.parametrize("classifier", ["own", "shared"])
def test_a_layer_s_own_forward_stays(classifier):
    model = small_model()
    model.fc = ScaledLinear(16, 3)
    x, y = images(0)
    expected = model.train()(x)
    loss = MBJLoss(COUNTS, classifier=classifier, eta=1.0, **ALL).bind(model)
    assert torch.equal(model(x), expected)
    loss(model(x), y)
    total = loss(model(x), y)
    torch.testing.assert_close(total, 2 * F.cross_entropy(expected, y))  # the memory holds these very images
    total.backward()
    assert model.fc.weight.grad.norm() > 0
    weight, bias = loss.heads.affine()
    torch.testing.assert_close(weight, 16 * F.normalize(model.fc.weight))
    torch.testing.assert_close(bias, 16 * model.fc.bias)


def test_a_layer_that_is_not_linear_in_its_input_is_refused():
    model = small_model()
    model.fc = CosineLinear(16, 3)
    loss = MBJLoss(COUNTS).bind(model)
    with pytest.raises(ValueError, match="not linear in its input"):
        loss(model(images(0)[0]), images(0)[1])


def test_weight_norm():
    model = small_model()
    nn.utils.parametrizations.weight_norm(model.fc)
    loss = MBJLoss(COUNTS, **ALL).bind(model)
    train(model, loss, range(3))
    assert not torch.equal(model.fc.weight, model.fc.batch_classifier.weight)
    old = small_model()
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(old.fc)
    with pytest.raises(ValueError, match="parametrizations.weight_norm"):
        MBJLoss(COUNTS).bind(old)
    assert type(old.fc) is nn.Linear


def test_unbound_the_model_is_stock():
    model = small_model()
    loss = MBJLoss(COUNTS, **ALL).bind(model)
    train(model, loss, range(3))
    x, _ = images(0)
    expected, keys = model.eval()(x), [name for name, _ in small_model().named_parameters()]
    assert loss.unbind(model) is model
    assert type(model.fc) is nn.Linear and [name for name, _ in model.named_parameters()] == keys
    torch.testing.assert_close(torch.jit.script(model)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)
    assert loss.memories["feature"].bank.filled == 18
    with pytest.raises(ValueError, match="loss.bind"):
        loss(model.train()(x), images(0)[1])


def test_copies_after_a_forward_pass():
    model = small_model()
    loss = MBJLoss(COUNTS, **ALL).bind(model)
    x, y = images(0)
    loss(model(x), y)
    model(x)  # recorded, not taken
    for twin, criterion in (copy.deepcopy((model, loss)), pickle.loads(pickle.dumps((model, loss)))):
        assert twin.fc.recorded is None and torch.equal(twin.fc.weight, model.fc.weight)
        assert twin.fc.weight is not model.fc.weight
        with pytest.raises(ValueError, match="loss.bind"):
            criterion(twin(x), y)
        criterion.bind(twin)
        assert criterion.memories["feature"].bank.filled == 6
        criterion(twin(x), y)
        assert criterion.memories["feature"].bank.filled == 12
    assert loss.memories["feature"].bank.filled == 6


def test_a_replaced_classifier_says_bind_again():
    model = small_model()
    loss = MBJLoss(COUNTS, **ALL).bind(model)
    model.reset_classifier(3)
    with pytest.raises(ValueError, match="loss.bind\\(model\\) again"):
        loss(model(images(0)[0]), images(0)[1])
    loss.bind(model)
    loss(model(images(0)[0]), images(0)[1])


def test_binding_again_keeps_both_classifiers():
    model = small_model()
    loss = MBJLoss(COUNTS, **ALL).bind(model)
    train(model, loss, range(3))
    batch = model.fc.batch_classifier
    loss.bind(model)
    assert model.fc.batch_classifier is batch
    MBJLoss(COUNTS, classifier="shared", **ALL).bind(model)
    assert model.fc.batch_classifier is None


def test_a_batch_without_labels_counts_in_nothing():
    model = small_model()
    loss = MBJLoss(COUNTS, **ALL).bind(model)
    value = loss(model(images(0)[0]), torch.full((6,), -1))
    value.backward()
    assert value == 0
    assert all(p.grad is None or not p.grad.isnan().any() for p in model.parameters())


@pytest.mark.parametrize("prototypes", ["batch", "memory"])
def test_whose_prototypes_are_remembered(prototypes):
    model = small_model()
    loss = MBJLoss(COUNTS, memory="both", prototypes=prototypes, eta=1.0, **ALL).bind(model)
    train(model, loss, range(3))
    layer = model.fc.batch_classifier if prototypes == "batch" else model.fc
    before = layer.weight.detach().clone()
    loss(model(images(3)[0]), images(3)[1])
    assert torch.equal(loss.memories["prototype"].bank.rows[9:12], before)
    assert not torch.equal(model.fc.weight, model.fc.batch_classifier.weight)


def test_counts_by_class():
    loss = MBJLoss({0: 30, 2: 5, 1: 10}, **ALL).bind(small_model())
    assert loss.memories["feature"].class_counts.tolist() == COUNTS
    with pytest.raises(ValueError, match="class_counts is None"):
        MBJLoss(None)
