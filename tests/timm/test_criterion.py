import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from torch.utils._python_dispatch import TorchDispatchMode

from mbj_plugin import memory_cross_entropy
from mbj_plugin.batch_losses import FocalLoss
from mbj_plugin.settings import MBJSettings
from mbj_plugin.timm import MBJLoss, criterion
from tests.make_mbj_loss import mbj_loss

COUNTS = [30, 10, 5]
ALL = {"beta": 0.0, "norm": "max"}


def small_model(**kwargs):
    return timm.create_model("resnet32_cifar", depth=8, width=4, num_classes=3, **kwargs)


def images(step, n=6):
    g = torch.Generator().manual_seed(step)
    return torch.randn(n, 3, 16, 16, generator=g), torch.randint(0, 3, (n,), generator=g)


class Tiny(torch.nn.Module):
    """All that a model needs to have, and quick."""

    def __init__(self, dim=4):
        super().__init__()
        self.fc = torch.nn.Linear(dim, 3)

    def get_classifier(self):
        return self.fc

    def forward(self, x):
        return self.fc(x)


def test_the_defaults_are_those_of_the_flag():
    loss = MBJLoss(COUNTS).bind(Tiny())
    memory = loss.memories["feature"]
    assert loss.settings == MBJSettings.preset("classification") and loss.own_classifier
    assert (memory.eta, memory.bank.size, memory.norm, memory.start, memory.seed) == (15.0, 500, "max", 0, 0)
    memories = mbj_loss(COUNTS, memory="both").bind(Tiny()).memories
    assert [(m.eta, m.bank.size, m.bank.dim) for m in memories.values()] == [(15.0, 500, 4), (1 / 7, 3500, 4)]


def test_settings_reach_the_memories():
    shared = {"size": 9, "eta": 2.5, "beta": 0.7, "norm": "max", "start": 4, "seed": 8}
    loss = mbj_loss(COUNTS, memory="both", momentum=0.5, sample=2, **shared).bind(Tiny())
    for memory in loss.memories.values():
        values = {name: getattr(memory, name) for name in shared if name != "size"}
        assert {**values, "size": memory.bank.size} == shared
        assert memory.class_counts.tolist() == COUNTS
    feature, prototype = loss.memories["feature"], loss.memories["prototype"]
    assert (feature.sample, prototype.momentum) == (2, 0.5)
    assert list(mbj_loss(COUNTS, memory="prototype").bind(Tiny()).memories) == ["prototype"]


@pytest.mark.parametrize("labels", [[0, 0, 0], [2, -1, 1], [-1, -1, 0], [-1, -1, -1]])
def test_cross_entropy_of_the_labelled(labels):
    output, labels = torch.randn(3, 3), torch.tensor(labels)
    labelled = labels >= 0
    expected = F.cross_entropy(output[labelled], labels[labelled]) if labelled.any() else torch.zeros(())
    torch.testing.assert_close(criterion.CrossEntropy()(output, labels), expected)


def test_a_copy_knows_no_model():
    model = Tiny()
    loss = mbj_loss(COUNTS, **ALL).bind(model)
    loss(model(torch.ones(2, 4)), torch.tensor([0, 2]))
    copied = pickle.loads(pickle.dumps(loss))
    assert copied.heads is None and copied.parts == {} and loss.heads is not None


def test_the_memory_gets_soft_targets_without_their_smoothing():
    model, given = Tiny(), []
    loss = mbj_loss(COUNTS, SoftTargetCrossEntropy(), smoothing=0.1, **ALL).bind(model)
    loss.memories["feature"].register_forward_pre_hook(lambda module, args: given.append(args[1]))
    mixed = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.0, 1.0]])
    loss(model(torch.ones(2, 4)), 0.9 * mixed + 0.1 / 3)
    torch.testing.assert_close(given[0], mixed)
    hard = torch.tensor([0, 2])
    loss.base = loss.classifier_loss = torch.nn.CrossEntropyLoss()
    loss(model(torch.ones(2, 4)), hard)
    assert given[1] is hard


def test_bound_to_another_model():
    model = Tiny()
    loss = mbj_loss(COUNTS, **ALL).bind(model)
    loss(model(torch.ones(2, 4)), torch.tensor([0, 1]))
    memory = loss.memories["feature"]
    other = Tiny()
    assert loss.bind(other) is loss and loss.memories["feature"] is memory
    with pytest.raises(ValueError, match="not what its classifier computes"):  # it is looked at anew
        loss(2 * other(torch.ones(2, 4)) + 1, torch.tensor([0, 1]))
    assert loss.bind(Tiny(dim=5)).memories["feature"].bank.dim == 5
    assert loss.bind(Tiny().to("meta")).memories["feature"].bank.rows.is_meta


def test_the_model_is_looked_at_once(monkeypatch):
    model, looked = Tiny(), []
    monkeypatch.setattr(criterion, "same_map", lambda *args: looked.append(args) or True)
    loss = mbj_loss(COUNTS, **ALL).bind(model)
    with torch.no_grad():
        model.fc.batch_classifier.weight.add_(1.0)
    for _ in range(2):
        loss(model(x := torch.ones(2, 4)), torch.tensor([0, 1]))
    ((weight, bias, features, output),) = looked
    assert torch.equal(weight, model.fc.batch_classifier.weight) and bias is model.fc.batch_classifier.bias
    assert torch.equal(features, x) and torch.equal(output, model(x))


def test_training_mode_without_grad_is_the_batch_loss_alone():
    model = Tiny()
    loss = mbj_loss(COUNTS, **ALL).bind(model)
    with torch.no_grad():
        loss(model(torch.ones(2, 4)), torch.tensor([0, 1]))
    value = loss.eval()(output := model(torch.ones(2, 4)), torch.tensor([0, 1]))
    assert torch.equal(value, F.cross_entropy(output, torch.tensor([0, 1])))
    assert loss.memories["feature"].bank.filled == 0 and loss.parts == {}


def test_it_is_the_batch_loss_plus_eta_times_the_memory_loss():
    model = small_model()
    loss = mbj_loss(COUNTS, eta=2.0, **ALL).bind(model)
    features = model.forward_head(model.forward_features(images(0)[0]), pre_logits=True)
    loss(model(images(0)[0]), images(0)[1])
    output = model(images(1)[0])
    total = loss(output, images(1)[1])
    memory = memory_cross_entropy(features, images(0)[1], model.fc.weight, model.fc.bias)
    torch.testing.assert_close(total, F.cross_entropy(output, images(1)[1]) + 2.0 * memory)
    torch.testing.assert_close(loss.parts["loss_batch"] + loss.parts["loss_memory"], total.detach())


@pytest.mark.parametrize("memory", ["feature", "prototype", "both"])
def test_each_memory_trains(memory):
    model = small_model()
    loss = mbj_loss(COUNTS, memory=memory, **ALL).bind(model)
    for step in range(3):
        loss(model(images(step)[0]), images(step)[1]).backward()
    assert loss.parts["loss_memory"] > 0
    assert sorted(loss.memories) == (["feature", "prototype"] if memory == "both" else [memory])


@pytest.mark.parametrize("base", [SoftTargetCrossEntropy(), BinaryCrossEntropy()])
def test_soft_targets(base):
    model = small_model()
    loss = mbj_loss(COUNTS, base, memory="both", **ALL).bind(model)
    for step in range(2):
        x, y = images(step)
        loss(model(x), 0.7 * F.one_hot(y, 3) + 0.3 * F.one_hot(y.flip(0), 3)).backward()
    assert loss.memories["feature"].bank.filled == 12


def test_unlabelled_images_count_in_neither_loss():
    model = small_model()
    loss = mbj_loss(COUNTS, **ALL).bind(model)
    x, _ = images(0)
    value = loss(model(x), torch.tensor([0, 1, -1, 2, -1, 0]))
    assert torch.isfinite(value)
    assert loss.memories["feature"].bank.filled == 4


def test_a_nan_feature_never_enters():
    model = small_model()
    loss = mbj_loss(COUNTS, **ALL).bind(model)
    x, y = images(0)
    loss(model(x), y)
    torch.nn.init.constant_(model.bn1.bias, float("nan"))
    loss(model(x), y)
    bank = loss.memories["feature"].bank
    assert bank.filled == 6
    assert torch.isfinite(bank.rows).all()


def test_compiled_model_gives_the_same_memory():
    model, reference = small_model(), small_model()
    reference.load_state_dict(model.state_dict())
    loss, expected = mbj_loss(COUNTS, **ALL).bind(model), mbj_loss(COUNTS, **ALL).bind(reference)
    compiled = torch.compile(model, backend="aot_eager")
    for step in range(2):
        x, y = images(step)
        torch.testing.assert_close(loss(compiled(x), y), expected(reference(x), y))
    rows = (each.memories["feature"].bank.rows for each in (loss, expected))
    torch.testing.assert_close(*rows)


def test_a_model_that_combines_heads_is_refused():
    model = timm.create_model("volo_d1_224", num_classes=3, img_size=64)
    loss = mbj_loss(COUNTS).bind(model)
    with pytest.raises(ValueError, match="not what its classifier computes"):
        loss(model(torch.randn(2, 3, 64, 64)), torch.tensor([0, 1]))


def test_logits_that_overflow_in_the_first_step_say_nothing_of_the_model():
    model = small_model()
    loss = mbj_loss(COUNTS, **ALL).bind(model)
    loss(model(images(0)[0] * float("inf")), images(0)[1])
    loss(model(images(1)[0]), images(1)[1])
    with pytest.raises(ValueError, match="not what its classifier computes"):
        mbj_loss(COUNTS, **ALL).bind(model)(2 * model(images(1)[0]) + 1, images(1)[1])


def test_other_number_of_classes():
    with pytest.raises(ValueError, match="3 classes, the class counts 2.*--num-classes 2"):
        mbj_loss([5, 5]).bind(small_model())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"sample": 600}, "memory's 500.*600"),
        ({"smoothing": 1.0}, "smoothing.*1.0"),
        ({"smoothing": -0.1}, "smoothing.*-0.1"),
        ({"base": "focal"}, "base must be a loss.*'focal'"),
    ],
)
def test_bad_values(kwargs, message):
    with pytest.raises(ValueError, match=message):
        mbj_loss(COUNTS, **kwargs)


class Count(TorchDispatchMode):
    ops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("start", "more"), [(99, 27), (0, 54)])
def test_the_operations_of_resnet32_s_step(start, more):
    counts = []
    for make in (lambda model: torch.nn.CrossEntropyLoss(), MBJLoss(COUNTS, start=start).bind):
        model = timm.create_model("resnet32_cifar", num_classes=3)
        loss = make(model)
        for step in range(3):
            model.zero_grad()
            with Count() as count:
                loss(model(images(step)[0]), images(step)[1]).backward()
        counts.append(count.ops)
    assert counts[1] - counts[0] <= more


def test_the_parts_are_told_apart():
    model = small_model()
    loss = mbj_loss(COUNTS, eta=2.0, classifier_loss="focal", **ALL)
    loss.bind(model)
    for step in range(2):
        total = loss(output := model(images(step)[0]), images(step)[1])
    assert list(loss.parts) == ["loss_batch", "loss_classifier", "loss_memory"]
    torch.testing.assert_close(loss.parts["loss_batch"], F.cross_entropy(output, images(1)[1]).detach())
    torch.testing.assert_close(loss.parts["loss_classifier"], FocalLoss()(output, images(1)[1]).detach())
    torch.testing.assert_close(total.detach(), loss.parts["loss_classifier"] + loss.parts["loss_memory"])
    shared = mbj_loss(COUNTS, classifier="shared", **ALL).bind(model := small_model())
    shared(model(images(0)[0]), images(0)[1])
    assert list(shared.parts) == ["loss_batch", "loss_memory"]


@pytest.mark.parametrize("late", [False, True])
def test_an_optimizer_that_was_made_too_early_is_told(late, caplog):
    model, loss = small_model(), mbj_loss(COUNTS, start=1, **ALL)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss.bind(model)
    optimizer = optimizer if late else torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(4):
        loss(model(images(step)[0]), images(step)[1]).backward()
        if step % 2:  # two batches in a step
            optimizer.step()
    assert [record.message.count("loss.bind") for record in caplog.records] == ([1] if late else [])
