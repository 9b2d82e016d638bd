"""Before the start the loss costs nothing, and every kind of loop sees the start."""

import copy
import io
import math

import pytest
import torch
import torch.distributed as dist
from memory_batches import COUNTS, batch

from mbj_plugin import FeatureMemoryLoss, PrototypeMemoryLoss, losses, sampling
from tests.in_fork import two_ranks

KINDS = [FeatureMemoryLoss, PrototypeMemoryLoss]


def make(kind, **kwargs):
    return kind(COUNTS, **{"dim": 4, "size": 7, "beta": 0.0, "norm": "max", "start": 3, **kwargs})


def value_and_gradients(loss, step, weight):
    """Of a step whose batch loss reaches features and weight as well."""
    x, y = batch(step)
    x.requires_grad_()
    value = loss(x, y, weight)
    gradients = torch.autograd.grad(value + (x @ weight.T).logsumexp(1).sum(), (x, weight))
    return value, *gradients


@pytest.mark.parametrize("kind", KINDS)
class TestStart:
    def test_nothing_is_computed_before(self, kind, weight, monkeypatch):
        def computed(*args):
            raise AssertionError("computed")

        monkeypatch.setattr(losses, "finite_cross_entropy", computed)
        monkeypatch.setattr(losses, "multi_prototype_loss", computed)
        loss = make(kind)
        for step in range(3):
            assert not loss.started
            assert loss(*batch(step), weight) == 0
        assert loss.started and loss.step == 3 and loss.bank.filled > 0
        with pytest.raises(AssertionError, match="computed"):
            loss(*batch(3), weight)

    def test_the_same_bits_as_where_the_device_holds_it_at_0(self, kind, weight):
        loss, computed = make(kind), make(kind)
        computed._blind = True
        for step in range(20):  # beyond a page of draws
            got, want = (value_and_gradients(one, step, weight) for one in (loss, computed))
            assert all(torch.equal(*pair) for pair in zip(got, want, strict=True)), step
            assert got[0].dtype == want[0].dtype and (got[0] > 0) == (step >= 3)
        for key, value in computed.state_dict().items():
            assert torch.equal(value, loss.state_dict()[key]), key

    def test_backward_of_the_loss_alone_brings_no_gradient(self, kind, weight):
        x, y = batch(0)
        make(kind)(x.requires_grad_(), y, weight).backward()
        assert weight.grad is None and x.grad is None

    @pytest.mark.parametrize("ranks", [1, 2])
    def test_the_device_is_asked_once_and_only_among_ranks(self, kind, weight, ranks, monkeypatch):
        loss, asked, read = make(kind), [], kind._read_step
        monkeypatch.setattr(sampling, "rank_and_world", lambda: (0, ranks))
        monkeypatch.setattr(kind, "_read_step", lambda self: asked.append(1) or read(self))
        for step in range(5):
            assert loss.host_counts() and loss.started == (step >= 3)
            loss.count_call()
        assert len(asked) == ranks - 1

    @pytest.mark.parametrize("assign", [False, True])
    def test_a_resumed_loss_goes_on(self, kind, assign, weight):
        first, resumed = make(kind), torch.nn.ModuleDict({"loss": make(kind)})
        for done in range(1, 5):
            first(*batch(done), weight)
            state = {f"loss.{key}": value.clone() for key, value in first.state_dict().items()}
            resumed.load_state_dict(state, assign=assign)
            assert resumed["loss"].started == first.started == (done >= 3)
        resumed.load_state_dict({f"loss.{key}": value for key, value in make(kind).state_dict().items()})
        assert not resumed["loss"].started

    def test_a_copy_counts_for_itself(self, kind, weight):
        loss = make(kind)
        loss(*batch(0), weight)
        file = io.BytesIO()
        torch.save(loss, file)
        file.seek(0)
        for other in (copy.deepcopy(loss), torch.load(file, weights_only=False)):
            for step in range(2):
                assert not other.started
                other(*batch(step), weight)
            assert other.started and not loss.started

    def test_a_start_where_no_value_is_known(self, kind):
        loss = make(kind).to("meta")
        for start, started in ((1, False), (0, True)):
            loss.start = start
            assert loss.started == started

    def test_start_may_change_after_compiled_calls(self, kind, weight):
        loss = make(kind, start=0)
        compiled = torch.compile(loss, fullgraph=True, backend="eager")
        for step in range(4):
            compiled(*batch(step), weight)
        loss.start = 5
        values = [loss(*batch(step), weight).item() for step in range(3)]
        assert values[0] == 0 and values[1] > 0 and loss.start == 5

    def test_a_compiled_loss_starts_in_one_graph(self, kind, weight):
        loss, eager = make(kind), make(kind)
        compiled = torch.compile(loss, fullgraph=True, backend="eager")
        for step in range(5):
            assert torch.equal(compiled(*batch(step), weight), eager(*batch(step), weight)), step
        assert torch.equal(loss.bank.slot_rows, eager.bank.slot_rows)


@pytest.mark.parametrize("kind", KINDS)
def test_a_captured_loss_is_there_after_the_start(kind, weight, monkeypatch):
    """A capture, played on a CPU: Python runs once, and replays are not seen."""
    loss = make(kind)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert loss(*batch(0), weight) == 0 and loss.started
    monkeypatch.undo()
    loss.step.fill_(3)  # as replays do
    assert loss(*batch(1), weight) > 0
    # Also in calls after the host has loaded back what warming up had changed.
    loss.load_state_dict(make(kind).state_dict())
    loss.step.fill_(3)
    loss.bank.enqueue(*batch(0))
    assert loss(*batch(1), weight) > 0


class Model(torch.nn.Module):
    """The classifier has no gradient but the memory loss's."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 3)
        self.memory = make(FeatureMemoryLoss, size=20)

    def forward(self, x, y):
        features = self.trunk(x)
        return features.square().mean() + self.memory(features, y, self.head.weight, self.head.bias)


def on_a_rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = Model()
    if rank == 0:  # DDP brings it to the other
        model.load_state_dict(torch.load(f"{folder}/two_steps.pt"))
    ddp = torch.nn.parallel.DistributedDataParallel(model)
    values, gradients = [], []
    for step in range(2, 6):
        ddp.zero_grad()
        x, y = batch(step)
        loss = ddp(x[rank::2], y[rank::2])
        loss.backward()
        values.append(model.memory.started)
        gradients.append(model.head.weight.grad.clone())
    torch.save((values, gradients), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_ddp(tmp_path):
    model = Model()
    for step in range(2):
        model(*batch(step))
    torch.save(model.state_dict(), tmp_path / "two_steps.pt")
    two_ranks(on_a_rank, tmp_path)
    (started, gradients), (other_started, other_gradients) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert started == other_started == [True] * 4
    for step in range(2, 6):
        model.zero_grad()
        x, y = batch(step)
        model(torch.cat([x[0::2], x[1::2]]), torch.cat([y[0::2], y[1::2]])).backward()
        expected = model.head.weight.grad
        assert torch.equal(gradients[step - 2], other_gradients[step - 2])
        if expected is None:
            assert step == 2 and not gradients[0].any()
        else:
            torch.testing.assert_close(gradients[step - 2], expected)
    assert math.isfinite(float(expected.sum())) and expected.any()


def test_without_distribution_this_is_the_one_rank():
    assert sampling.rank_and_world() == (0, 1)
