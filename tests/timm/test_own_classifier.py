"""A classifier of the memory's own: what trains which of the two, what a checkpoint holds, what a copy is."""

import copy
import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mbj_plugin import FeatureMemoryLoss
from mbj_plugin.timm.head import evaluate_classifiers, full_state, recording_layers
from tests.in_fork import two_ranks
from tests.make_mbj_loss import mbj_loss

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
    loss = mbj_loss(COUNTS, eta=2.0, start=1, **ALL).bind(model)
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
    loss = mbj_loss(COUNTS, start=2, **ALL).bind(model)
    optimizer = train(model, loss, range(2))
    for own, batch in loss.heads.parameter_pairs:
        assert torch.equal(own, batch)
    train(model, loss, range(2, 4), optimizer)
    assert not torch.equal(model.fc.weight, model.fc.batch_classifier.weight)


def test_the_value_is_equation_2_of_the_memory_classifier():
    model = small_model()
    loss = mbj_loss(COUNTS, eta=2.0, **ALL).bind(model)
    train(model, loss, range(3))
    x, y = images(3)
    value = loss(model(x), y)
    features = model.forward_head(model.forward_features(x), pre_logits=True)
    expected = F.cross_entropy(F.linear(features, model.fc.weight, model.fc.bias), y)
    torch.testing.assert_close(value - loss.parts["loss_memory"], expected)


def test_evaluation_and_state_dict_are_the_memory_classifier_s():
    model, stock = small_model(), small_model()
    keys = list(stock.state_dict())
    loss = mbj_loss(COUNTS, **ALL).bind(model)
    train(model, loss, range(3))
    assert list(model.state_dict()) == keys
    stock.load_state_dict(model.state_dict())
    x, _ = images(5)
    assert torch.equal(model.eval()(x), stock.eval()(x))
    assert torch.equal(stock.fc.weight, model.fc.weight)


def test_weights_that_are_loaded_are_of_both_classifiers_before_the_first_step_alone():
    model, other = small_model(), small_model()
    loss = mbj_loss(COUNTS, **ALL).bind(model)
    model.load_state_dict(other.state_dict())
    assert torch.equal(model.fc.weight, other.fc.weight)
    assert torch.equal(model.fc.batch_classifier.weight, other.fc.weight)
    train(model, loss, range(3))
    before = model.fc.batch_classifier.weight.detach().clone()
    model.load_state_dict(other.state_dict())
    assert torch.equal(model.fc.weight, other.fc.weight) and torch.equal(model.fc.batch_classifier.weight, before)
    with pytest.raises(RuntimeError, match='"fc.bias"'):
        model.load_state_dict({k: v for k, v in other.state_dict().items() if k != "fc.bias"})


@pytest.mark.parametrize("classifier", ["own", "shared"])
@pytest.mark.parametrize("order", [("model", "loss", "optimizer"), ("loss", "optimizer", "model")])
def test_save_model_loss_and_optimizer_load_and_go_on(classifier, order, tmp_path):
    model = small_model()
    loss = mbj_loss(COUNTS, classifier=classifier, start=1, **ALL).bind(model)
    optimizer = train(model, loss, range(4))
    parts = {"model": model, "loss": loss, "optimizer": optimizer}
    torch.save({name: part.state_dict() for name, part in parts.items()}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    other = small_model()
    fresh = mbj_loss(COUNTS, classifier=classifier, start=1, **ALL).bind(other)
    again = {"model": other, "loss": fresh, "optimizer": torch.optim.SGD(other.parameters(), lr=1.0, momentum=0.5)}
    for name in order:
        again[name].load_state_dict(state[name])
    train(model, loss, range(4, 7), optimizer)
    train(other, fresh, range(4, 7), again["optimizer"])
    for (name, value), expected in zip(other.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(value, expected), name
    for key, value in loss.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], value), key


def test_loading_a_model_s_own_state_changes_nothing():
    models = [small_model() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    losses = [mbj_loss(COUNTS, **ALL).bind(model) for model in models]
    optimizers = [train(model, loss, range(3)) for model, loss in zip(models, losses, strict=True)]
    models[1].load_state_dict(models[1].state_dict())
    for model, loss, optimizer in zip(models, losses, optimizers, strict=True):
        train(model, loss, range(3, 5), optimizer)
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in models), strict=True))


def test_a_state_of_another_kind_of_classifier_is_refused():
    own, shared = (mbj_loss(COUNTS, classifier=kind).bind(small_model()) for kind in ("own", "shared"))
    for one, other, had in ((own, shared, "own"), (shared, own, "shared")):
        with pytest.raises(ValueError, match=f"--mbj-classifier {had}"):
            one.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="loss.bind"):
        mbj_loss(COUNTS).load_state_dict(own.state_dict())


def test_an_average_of_the_model_averages_both_classifiers():
    model = small_model()
    loss = mbj_loss(COUNTS, **ALL).bind(model)
    optimizer = train(model, loss, range(2))
    average = ModelEmaV3(model, decay=0.5)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    train(model, loss, range(2, 3), optimizer)
    keys = list(model.state_dict())
    with full_state(model, average.module):
        average.update(model)
    assert list(model.state_dict()) == list(average.module.state_dict()) == keys
    for value, old, new in zip(average.module.parameters(), before, model.parameters(), strict=True):
        torch.testing.assert_close(value, (old + new) / 2)
    assert not torch.equal(average.module.fc.weight, average.module.fc.batch_classifier.weight)


def two_heads():
    return timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, num_classes=3, depth=1, drop_rate=0.1)


class Wrapped(nn.Module):
    """As DistributedDataParallel and a compiled model: the model is ``module``."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


@pytest.mark.parametrize("wrap", [lambda m: m, copy.deepcopy, Wrapped, lambda m: torch.compile(m, backend="eager")])
@pytest.mark.parametrize("make", [small_model, two_heads])
def test_one_pass_gives_the_logits_of_both_classifiers(make, wrap):
    model, stock = make(), make()
    size = 16 if make is small_model else 32
    loss = mbj_loss(COUNTS, **ALL).bind(model)
    with torch.no_grad():
        for _, batch in loss.heads.parameter_pairs:
            batch.add_(torch.randn_like(batch))
    with full_state(model):
        state = model.state_dict()
    batch = {k.replace(".batch_classifier", ""): v for k, v in state.items() if "batch_classifier" in k}
    model.eval()
    seen = wrap(model)
    x = torch.randn(5, 3, size, size).to(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        outputs = evaluate_classifiers(seen, x)
        assert not any(layer.recorder.asked for layer in recording_layers(seen))
        assert list(outputs) == ["batch", "memory"] and torch.equal(outputs["memory"], model(x))
        stock.eval().load_state_dict({**model.state_dict(), **batch})
        assert torch.equal(outputs["batch"], stock(x))  # of a run without MBJ, to the bit
        assert list(evaluate_classifiers(stock, x)) == ["batch"]
    with pytest.raises(ValueError, match="model.eval"):
        evaluate_classifiers(model.train(), x)


def test_prototypes_alone_have_one_classifier():
    loss = mbj_loss(COUNTS, memory="prototype", **ALL).bind(small_model())
    assert loss.heads.parameter_pairs == []


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
    loss = mbj_loss(COUNTS, classifier=classifier, eta=1.0, **ALL).bind(model)
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
    loss = mbj_loss(COUNTS).bind(model)
    with pytest.raises(ValueError, match="not linear in its input"):
        loss(model(images(0)[0]), images(0)[1])


def test_weight_norm():
    model = small_model()
    nn.utils.parametrizations.weight_norm(model.fc)
    loss = mbj_loss(COUNTS, **ALL).bind(model)
    train(model, loss, range(3))
    assert not torch.equal(model.fc.weight, model.fc.batch_classifier.weight)
    old = small_model()
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(old.fc)
    with pytest.raises(ValueError, match="parametrizations.weight_norm"):
        mbj_loss(COUNTS).bind(old)
    assert type(old.fc) is nn.Linear


def test_unbound_the_model_is_stock():
    model = small_model()
    loss = mbj_loss(COUNTS, **ALL).bind(model)
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
    loss = mbj_loss(COUNTS, **ALL).bind(model)
    x, y = images(0)
    loss(model(x), y)
    model(x)  # recorded, not taken
    for twin, criterion in (copy.deepcopy((model, loss)), pickle.loads(pickle.dumps((model, loss)))):
        assert twin.fc.recorder.recorded is None and torch.equal(twin.fc.weight, model.fc.weight)
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
    loss = mbj_loss(COUNTS, **ALL).bind(model)
    model.reset_classifier(3)
    with pytest.raises(ValueError, match="loss.bind\\(model\\) again"):
        loss(model(images(0)[0]), images(0)[1])
    loss.bind(model)
    loss(model(images(0)[0]), images(0)[1])


def test_binding_again_keeps_both_classifiers():
    model = small_model()
    loss = mbj_loss(COUNTS, **ALL).bind(model)
    train(model, loss, range(3))
    batch = model.fc.batch_classifier
    loss.bind(model)
    assert model.fc.batch_classifier is batch
    mbj_loss(COUNTS, classifier="shared", **ALL).bind(model)
    assert not hasattr(model.fc, "batch_classifier")


def test_a_batch_without_labels_counts_in_nothing():
    model = small_model()
    loss = mbj_loss(COUNTS, **ALL).bind(model)
    value = loss(model(images(0)[0]), torch.full((6,), -1))
    value.backward()
    assert value == 0
    assert all(p.grad is None or not p.grad.isnan().any() for p in model.parameters())


def test_the_batch_classifier_s_prototypes_are_remembered():
    model = small_model()
    loss = mbj_loss(COUNTS, memory="both", eta=1.0, **ALL).bind(model)
    train(model, loss, range(3))
    before = model.fc.batch_classifier.weight.detach().clone()
    loss(model(images(3)[0]), images(3)[1])
    assert torch.equal(loss.memories["prototype"].bank.rows[9:12], before)
    assert not torch.equal(model.fc.weight, model.fc.batch_classifier.weight)


def test_counts_by_class():
    loss = mbj_loss({0: 30, 2: 5, 1: 10}, **ALL).bind(small_model())
    assert loss.memories["feature"].class_counts.tolist() == COUNTS
    with pytest.raises(ValueError, match="class_counts is None"):
        mbj_loss(None)


def on_a_rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results = []
    for flags in ({}, {"find_unused_parameters": True}, {"static_graph": True}):
        torch.manual_seed(0)
        model = small_model()
        loss = mbj_loss(COUNTS, eta=2.0, start=1, **ALL).bind(model)
        ddp = DistributedDataParallel(model, **flags)
        for step in range(3):
            x, y = images(2 * step + rank)
            ddp.zero_grad()
            loss(ddp(x), y).backward()
        results.append({name: p.grad for name, p in model.named_parameters()})
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_with_each_flag_of_ddp(tmp_path):
    two_ranks(on_a_rank, tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    default = ranks[0][0]
    assert default["fc.weight"].any() and default["fc.batch_classifier.weight"].any()
    for results in ranks:
        for gradients in results:
            for name, gradient in gradients.items():
                torch.testing.assert_close(gradient, default[name], msg=name)


def test_data_parallel_is_refused():
    """What torch.nn.parallel.replicate makes of a layer: a copy that has no parameters."""
    model, loss = small_model(), mbj_loss(COUNTS)
    loss.bind(model)
    model.fc.batch_classifier = model.fc.batch_classifier._replicate_for_data_parallel()
    model.fc = model.fc._replicate_for_data_parallel()
    with pytest.raises(ValueError, match="DistributedDataParallel"):
        model(images(0)[0])
