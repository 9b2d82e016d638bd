"""Before the start the loss costs nothing, and every kind of loop sees the start."""

import copy
import io
import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from memory_batches import COUNTS, batch
from torch._dynamo.testing import CompileCounterWithBackend

from mbj_plugin import FeatureMemoryLoss, PrototypeMemoryLoss, clock, losses

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

    @pytest.mark.parametrize("ramp", [0, 3])
    def test_the_same_bits_as_where_the_device_holds_it_at_0(self, kind, ramp, weight):
        loss, computed = make(kind, ramp=ramp), make(kind, ramp=ramp)
        computed._clock.go_blind()
        for step in range(8):
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
        loss, asked = make(kind), []
        monkeypatch.setattr(clock, "rank_and_world", lambda: (0, ranks))
        monkeypatch.setattr(kind, "_calls", lambda self: asked.append(1) or int(self.step))
        for step in range(5):
            assert loss.idle() == (step < 3)
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
            compiled = torch.compile(other, backend="eager", fullgraph=True)
            for step in range(2):
                assert not other.started
                compiled(*batch(step), weight)
            assert other.started and not loss.started

    @pytest.mark.parametrize("start", [-1, 0.5, "2"])
    def test_a_start_that_is_no_number_of_steps(self, kind, start):
        with pytest.raises(ValueError, match="start must be a number of steps >= 0, got"):
            make(kind, start=start)

    def test_a_start_where_no_value_is_known(self, kind):
        loss = make(kind).to("meta")
        for start, started in ((1, False), (0, True)):
            loss.start = start
            assert loss.started == started

    def test_one_recompile_however_many_losses(self, kind, weight):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        eager, many = make(kind), [make(kind) for _ in range(10)]  # torch gives up at 8 graphs
        for loss in many:
            compiled = torch.compile(loss, fullgraph=True, backend=counter)
            for step in range(6):
                value = compiled(*batch(step), weight)
                assert (value > 0) == (step >= 3)
        # torch 2.4 holds a module in its graph, so that each has graphs of its own.
        assert counter.frame_count == (2 if torch.__version__ >= "2.5" else 2 * len(many))
        for step in range(6):
            eager(*batch(step), weight)
        for key, value in eager.state_dict().items():
            assert all(torch.equal(value, loss.state_dict()[key]) for loss in many), key

    def test_start_may_change_after_compiled_calls(self, kind, weight):
        loss = make(kind, start=0)
        compiled = torch.compile(loss, fullgraph=True, backend="eager")
        for step in range(4):
            compiled(*batch(step), weight)
        loss.start = 5
        values = [loss(*batch(step), weight).item() for step in range(3)]
        assert values[0] == 0 and values[1] > 0 and loss.start == 5


@pytest.mark.parametrize("kind", KINDS)
class TestCudaGraph:
    """A capture, played on a CPU: Python runs once, and replays are not seen."""

    @pytest.fixture
    def capture(self, monkeypatch):
        return lambda on: monkeypatch.setattr(clock, "capturing", lambda: on)

    def test_a_captured_loss_is_there_after_the_start(self, kind, weight, capture, monkeypatch):
        computed = []
        for name in ("finite_cross_entropy", "multi_prototype_loss"):
            function = getattr(losses, name)
            monkeypatch.setattr(losses, name, lambda *args, f=function: computed.append(1) or f(*args))
        loss = make(kind)
        capture(True)
        assert loss(*batch(0), weight) == 0 and computed
        capture(False)
        loss.step.fill_(3)  # as replays do
        assert loss(*batch(1), weight) > 0
        # Also in calls after the host has loaded back what warming up had changed.
        loss.load_state_dict(make(kind).state_dict())
        loss.step.fill_(3)
        loss.bank.enqueue(*batch(0))
        assert loss(*batch(1), weight) > 0

    def test_a_host_that_counts_replays_captures_twice(self, kind, weight, capture):
        loss, (x, y) = make(kind), batch(0)
        x.requires_grad_()
        loss.idle_in_graphs = True
        capture(True)
        assert loss(x, y, weight).grad_fn.name().startswith("_NoLoss")
        capture(False)
        loss.step.zero_()  # a capture runs nothing
        assert loss._clock.calls == 0
        loss.advance()
        loss.advance(1)
        assert not loss.started
        loss.advance()
        assert loss.started
        capture(True)
        assert not loss(x, y, weight).grad_fn.name().startswith("_NoLoss")

    def test_a_compiled_loss_is_not_left_out_of_a_graph_for_ever(self, kind, weight, capture):
        loss = make(kind)
        compiled = torch.compile(loss, fullgraph=True, backend="eager")
        compiled(*batch(0), weight)
        capture(True)
        with pytest.raises(RuntimeError, match="capture after the start"):
            compiled(*batch(1), weight)
        loss.idle_in_graphs = True
        compiled(*batch(1), weight)
        assert loss._clock.calls == 1


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


def two_ranks(rank, folder):
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
    mp.spawn(two_ranks, (tmp_path,), nprocs=2)
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
    assert clock.rank_and_world() == (0, 1)


@pytest.mark.skipif(not hasattr(torch.Tag, "cudagraph_unsafe"), reason="this torch has no such tag")
def test_inductor_leaves_the_counter_out_of_cuda_graphs():
    assert torch.Tag.cudagraph_unsafe in torch.ops.mbj_plugin.count_call.default.tags
