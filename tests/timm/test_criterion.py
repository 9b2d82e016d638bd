import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy

from mbj_plugin import memory_cross_entropy
from mbj_plugin.timm import MBJLoss

COUNTS = [30, 10, 5]
ALL = {"beta": 0.0, "norm": "max"}


def small_model(**kwargs):
    return timm.create_model("resnet32_cifar", depth=8, width=4, num_classes=3, **kwargs)


def images(step, n=6):
    g = torch.Generator().manual_seed(step)
    return torch.randn(n, 3, 16, 16, generator=g), torch.randint(0, 3, (n,), generator=g)


def test_it_is_the_batch_loss_plus_eta_times_the_memory_loss():
    model = small_model()
    loss = MBJLoss(COUNTS, eta=2.0, **ALL).bind(model)
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
    loss = MBJLoss(COUNTS, memory=memory, **ALL).bind(model)
    for step in range(3):
        loss(model(images(step)[0]), images(step)[1]).backward()
    assert loss.parts["loss_memory"] > 0
    assert sorted(loss.memories) == (["feature", "prototype"] if memory == "both" else [memory])


@pytest.mark.parametrize("base", [SoftTargetCrossEntropy(), BinaryCrossEntropy()])
def test_soft_targets(base):
    model = small_model()
    loss = MBJLoss(COUNTS, base, memory="both", **ALL).bind(model)
    for step in range(2):
        x, y = images(step)
        loss(model(x), 0.7 * F.one_hot(y, 3) + 0.3 * F.one_hot(y.flip(0), 3)).backward()
    assert loss.memories["feature"].bank.filled == 12


def test_smoothing_of_the_targets_does_not_reach_the_memory():
    model = small_model()
    loss = MBJLoss(COUNTS, SoftTargetCrossEntropy(), smoothing=0.5, **ALL).bind(model)
    for step in range(8):
        x, _ = images(step)
        mixed = torch.tensor([0.6, 0.4, 0.0]).expand(6, 3)
        loss(model(x), 0.5 * mixed + 0.5 / 3)
    labels = loss.memories["feature"].bank.labels
    assert set(labels[labels >= 0].tolist()) == {0, 1}


def test_unlabelled_images_count_in_neither_loss():
    model = small_model()
    loss = MBJLoss(COUNTS, **ALL).bind(model)
    x, _ = images(0)
    value = loss(model(x), torch.tensor([0, 1, -1, 2, -1, 0]))
    assert torch.isfinite(value)
    assert loss.memories["feature"].bank.filled == 4


def test_it_can_be_pickled():
    pickle.loads(pickle.dumps(MBJLoss(COUNTS)))


def test_out_of_training_it_is_the_batch_loss_alone():
    model = small_model()
    loss = MBJLoss(COUNTS, **ALL).bind(model)
    loss(model(images(0)[0]), images(0)[1])
    model.eval(), loss.eval()
    x, y = images(1)
    assert torch.equal(loss(model(x), y), F.cross_entropy(model(x), y))
    assert loss.memories["feature"].bank.filled == 6


def test_a_nan_feature_never_enters():
    model = small_model()
    loss = MBJLoss(COUNTS, **ALL).bind(model)
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
    loss, expected = MBJLoss(COUNTS, **ALL).bind(model), MBJLoss(COUNTS, **ALL).bind(reference)
    compiled = torch.compile(model, backend="aot_eager")
    for step in range(2):
        x, y = images(step)
        torch.testing.assert_close(loss(compiled(x), y), expected(reference(x), y))
    rows = (each.memories["feature"].bank.rows for each in (loss, expected))
    torch.testing.assert_close(*rows)


def test_a_model_that_combines_heads_is_refused():
    model = timm.create_model("volo_d1_224", num_classes=3, img_size=64)
    loss = MBJLoss(COUNTS).bind(model)
    with pytest.raises(ValueError, match="not what its classifier computes"):
        loss(model(torch.randn(2, 3, 64, 64)), torch.tensor([0, 1]))


def test_logits_that_overflow_in_the_first_step_say_nothing_of_the_model():
    model = small_model()
    loss = MBJLoss(COUNTS, **ALL).bind(model)
    loss(model(images(0)[0] * float("inf")), images(0)[1])
    loss(model(images(1)[0]), images(1)[1])
    with pytest.raises(ValueError, match="not what its classifier computes"):
        MBJLoss(COUNTS, **ALL).bind(model)(2 * model(images(1)[0]) + 1, images(1)[1])


def test_unbound():
    with pytest.raises(ValueError, match="loss.bind"):
        MBJLoss(COUNTS)(torch.zeros(2, 3, requires_grad=True), torch.tensor([0, 1]))


def test_other_number_of_classes():
    with pytest.raises(ValueError, match="3 classes, the class counts 2.*--num-classes 2"):
        MBJLoss([5, 5]).bind(small_model())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"memory": "typo"}, "memory.*'typo'"),
        ({"momentum": 0.9}, "momentum 0.9.*prototype"),
        ({"eta": -1.0}, "eta.*-1.0"),
        ({"size": 0}, "memory size.*0"),
        ({"sample": 600}, "memory's 500.*600"),
        ({"sample": 5, "memory": "prototype"}, "sample is of memorised features"),
        ({"norm": "typo"}, "norm.*'typo'"),
        ({"smoothing": 1.0}, "smoothing.*1.0"),
    ],
)
def test_bad_values(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MBJLoss(COUNTS, **kwargs)
