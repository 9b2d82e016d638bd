"""What a GPU and Inductor demand, without a GPU: one device, no host sync, no shape from data, right gradients."""

import pytest
import torch
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from mbj_plugin import FeatureMemoryLoss, MemoryBank, PrototypeMemoryLoss
from mbj_plugin.timm import MBJLoss
from tests.make_mbj_loss import mbj_loss

COUNTS = [100, 10, 2]
LOSSES = [
    (FeatureMemoryLoss, {}),
    (FeatureMemoryLoss, {"sample": 3}),
    (FeatureMemoryLoss, {"start": 9}),
    (FeatureMemoryLoss, {"eta": 0.0}),
    (PrototypeMemoryLoss, {}),
    (PrototypeMemoryLoss, {"momentum": 0.5}),
    (PrototypeMemoryLoss, {"start": 9}),
]


def backward(loss: Tensor) -> dict[Tensor, Tensor]:
    """Gradients of the leaves. Autograd's engine asks the driver for streams, its nodes do not, called one by one."""
    pending, gradients = {loss.grad_fn: [torch.ones_like(loss)]}, {}
    while pending:
        node = max(pending, key=lambda n: n._sequence_nr() if not hasattr(n, "variable") else -1)
        given = pending.pop(node)
        if hasattr(node, "variable"):
            gradients[node.variable] = given[0]
            continue
        results = node.apply(*given) if hasattr(node, "apply") else node(*given)
        results = results if isinstance(results, tuple) else (results,)
        for (after, slot), gradient in zip(node.next_functions, results, strict=False):
            if after is None or gradient is None:
                continue
            gradient = gradient.sum_to_size(after._input_metadata[slot].shape)  # a bias was expanded: the engine sums
            inputs = pending.setdefault(after, [None] * len(after._input_metadata))
            inputs[slot] = gradient if inputs[slot] is None else inputs[slot] + gradient
    return gradients


def on_fake_gpu(module: nn.Module) -> nn.Module:
    for part in module.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(torch.empty(parameter.shape, device="cuda"))
    return module


def step_on_fake_gpu(kind, kwargs, soft=False) -> None:
    loss = kind(COUNTS, dim=4, size=5, **kwargs)
    with FakeTensorMode():
        on_fake_gpu(loss)
        weight = nn.Parameter(torch.empty(3, 4, device="cuda"))
        x = torch.empty(6, 4, device="cuda", requires_grad=True)
        y = torch.empty(6, 3, device="cuda") if soft else torch.empty(6, dtype=torch.long, device="cuda")
        bias = [torch.empty(3, device="cuda")] if kind is FeatureMemoryLoss else []
        for _ in range(2):
            value = loss(x, y, weight, *bias) + (x @ weight.T).sum()
            gradients = backward(value)
            assert value.device.type == "cuda"
            for leaf in (x, weight):
                assert gradients[leaf].device.type == "cuda" and gradients[leaf].shape == leaf.shape


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("kind", "kwargs"), LOSSES)
def test_a_step_on_a_gpu(kind, kwargs, soft):
    step_on_fake_gpu(kind, kwargs, soft)


def test_the_backward_pass_by_hand_is_autograds():
    x, w, b = (torch.randn(*shape, requires_grad=True) for shape in ((5, 4), (3, 4), (3,)))
    loss = nn.functional.linear(x, w, b).logsumexp(1).sum() + x.square().mean() + w[0].sum() + b.exp().sum()
    by_hand = backward(loss)
    loss.backward()
    for leaf in (x, w, b):
        torch.testing.assert_close(by_hand[leaf], leaf.grad)


class SyncInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * gradient.item()


PLANTED = {
    "a tensor on the CPU": (RuntimeError, lambda x: x + torch.zeros(x.shape or (1,), device="cpu")),
    "a host sync": (DataDependentOutputException, lambda x: x * x.sum().item()),
    "a branch": (DataDependentOutputException, lambda x: x if (x > 0).all() else -x),
    "a shape from data": (DynamicOutputShapeException, lambda x: x.reshape(-1)[x.reshape(-1) > 0].sum()),
    "a host sync in backward": (DataDependentOutputException, SyncInBackward.apply),
}


@pytest.mark.parametrize("fault", PLANTED)
@pytest.mark.parametrize("kind", [FeatureMemoryLoss, PrototypeMemoryLoss])
def test_a_fault_in_the_loss_is_seen(kind, fault, monkeypatch):
    (error, plant), memory_loss = PLANTED[fault], kind._memory_loss
    monkeypatch.setattr(kind, "_memory_loss", lambda self, *args: plant(memory_loss(self, *args)))
    with pytest.raises(error):
        step_on_fake_gpu(kind, {})


def enqueue_on_fake_gpu() -> None:
    bank = MemoryBank(5, 4)
    with FakeTensorMode():
        on_fake_gpu(bank)
        rows, labels = torch.empty(6, 4, device="cuda"), torch.empty(6, dtype=torch.long, device="cuda")
        bank.enqueue(rows, labels)
        bank.enqueue(rows.half(), labels, torch.empty(6, dtype=torch.bool, device="cuda"))
        assert bank.filled.device.type == bank.ages.device.type == "cuda"


def test_an_enqueue_on_a_gpu():
    enqueue_on_fake_gpu()


@pytest.mark.parametrize("fault", [name for name in PLANTED if "backward" not in name])
def test_a_fault_in_the_enqueue_is_seen(fault, monkeypatch):
    (error, plant), enqueue = PLANTED[fault], MemoryBank._enqueue_on_device
    monkeypatch.setattr(MemoryBank, "_enqueue_on_device", lambda self, rows, *args: enqueue(self, plant(rows), *args))
    with pytest.raises(error):
        enqueue_on_fake_gpu()


class Model(nn.Module):
    """What timm's models have in common."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.fc = nn.Linear(4, 4), nn.Linear(4, 3)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.trunk(x))


def criterion_on_fake_gpu(soft=False, **kwargs) -> None:
    model = Model()
    base = SoftTargetCrossEntropy() if soft else None
    loss = mbj_loss(COUNTS, base, size=5, smoothing=0.1 * soft, **kwargs).bind(model)
    loss._checked = True  # the one look at the model's first output, which waits for it
    with FakeTensorMode():
        on_fake_gpu(model), on_fake_gpu(loss.memories)
        x = torch.empty(6, 4, device="cuda")
        y = torch.empty(6, 3, device="cuda") if soft else torch.empty(6, dtype=torch.long, device="cuda")
        for _ in range(4):
            value = loss(model(x), y)
        gradients = backward(value)
        assert value.device.type == "cuda"
        for leaf in model.parameters():
            assert gradients[leaf].device.type == "cuda" and gradients[leaf].shape == leaf.shape


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"classifier": "shared", "sample": 3},
        {"memory": "both", "momentum": 0.5},
        {"start": 99},
    ],
)
def test_a_step_of_timms_criterion_on_a_gpu(kwargs, soft):
    criterion_on_fake_gpu(soft, **kwargs)


@pytest.mark.parametrize("fault", PLANTED)
@pytest.mark.parametrize("classifier", ["own", "shared"])
def test_a_fault_in_timms_criterion_is_seen(classifier, fault, monkeypatch):
    (error, plant), memory_loss = PLANTED[fault], MBJLoss._memory_loss
    monkeypatch.setattr(MBJLoss, "_memory_loss", lambda self, *args: plant(memory_loss(self, *args)))
    with pytest.raises(error):
        criterion_on_fake_gpu(classifier=classifier)


def make_all() -> nn.ModuleList:
    shared = {"dim": 4, "size": 5, "beta": 0.0, "norm": "max"}
    return nn.ModuleList(
        [
            FeatureMemoryLoss(COUNTS, **shared),
            FeatureMemoryLoss(COUNTS, **shared, sample=3),
            PrototypeMemoryLoss(COUNTS, **shared, momentum=0.5),
        ]
    )


def make_few() -> nn.ModuleList:
    shared = {"dim": 4, "size": 5, "beta": 0.0, "norm": "max"}
    return nn.ModuleList([FeatureMemoryLoss(COUNTS, **shared), PrototypeMemoryLoss(COUNTS, **shared)])


# The second backend is all of Inductor but its code: gradients go wrong where it decides what to compute anew.
@pytest.mark.parametrize(
    ("backend", "make", "soft"),
    [("inductor", make_few, False), ("aot_eager_decomp_partition", make_all, True)],
)
def test_compiled_as_one_graph_state_and_gradients_are_eagers(backend, make, soft):
    def total(modules, x, y, weight):
        return sum(module(x, y, weight) for module in modules)

    torch._dynamo.reset()
    eager, compiled = make(), make()
    call = torch.compile(lambda *args: total(compiled, *args), fullgraph=True, backend=backend)
    weight = nn.Parameter(torch.randn(3, 4, generator=torch.Generator().manual_seed(99)))
    for step in range(5):
        g = torch.Generator().manual_seed(step)
        x = torch.randn(6, 4, generator=g, requires_grad=True)
        y = torch.rand(6, 3, generator=g).softmax(1) if soft else torch.randint(0, 3, (6,), generator=g)
        got, want = call(x, y, weight), total(eager, x, y, weight)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(*(torch.autograd.grad(value, (x, weight)) for value in (got, want)))
        assert want > 0 or step == 0
    for key, value in eager.state_dict().items():
        assert torch.equal(value, compiled.state_dict()[key]), key
