"""What both losses promise, on one rank and on two."""

import inspect

import pytest
import torch
import torch.distributed as dist
from memory_batches import ALWAYS, COUNTS, batch

from mbj_plugin import FeatureMemoryLoss, PrototypeMemoryLoss, losses
from tests.in_fork import two_ranks

# Of two rows and three classes: a column, one-hot integers, other classes, floats, switches, a label of no class.
WRONG = [torch.zeros(2, 1).long(), torch.eye(3)[:2].long(), torch.ones(2, 4) / 4, torch.zeros(2, 1), torch.zeros(2)]
WRONG += [torch.zeros(2, dtype=torch.bool), torch.zeros(3).long(), torch.tensor([0, 3])]


@pytest.mark.parametrize("kind", [FeatureMemoryLoss, PrototypeMemoryLoss])
class TestBoth:
    def test_defaults_are_the_papers_and_off(self, kind):
        shared = {"beta": 1.5, "norm": "sum", "start": 0, "seed": 0}
        own = {"size": 500, "eta": 15.0, "sample": 0}
        if kind is PrototypeMemoryLoss:
            own = {"size": 3500, "eta": 1 / 7, "scale": 16.0, "margin": 0.2, "momentum": 0.0}
            own["num_classes"] = None
        given = {name: p.default for name, p in inspect.signature(kind).parameters.items() if p.default is not p.empty}
        assert given == shared | own

    def test_counts_go_where_the_memory_is_in_full_precision(self, kind):
        loss = kind(None, dim=4).to("meta")
        loss.set_class_counts(COUNTS)
        assert loss.probs.device.type == loss.class_counts.device.type == "meta"
        loss = kind(torch.tensor(COUNTS, dtype=torch.float64), dim=4)
        assert loss.probs.dtype == torch.float32
        assert loss.class_counts.tolist() == COUNTS
        assert all(buffer.is_meta for buffer in loss.to("meta").buffers())
        assert loss.probs.is_meta and loss.class_counts.is_meta

    def test_half_precision_before_the_start(self, kind, weight):
        loss = kind(COUNTS, dim=4, start=1)
        value = loss(torch.ones(2, 4).bfloat16(), torch.tensor([0, 1]), weight.bfloat16())
        assert value == 0 and value.dtype == torch.float32

    def test_a_class_without_images_does_not_enter_even_at_the_least_draw(self, kind, weight, monkeypatch):
        monkeypatch.setattr(kind, "uniform", lambda self, count, stream: torch.zeros(count))
        loss = kind([100, 0, 10], dim=4, size=20)
        loss(torch.ones(3, 4), torch.arange(3), weight)
        assert loss.bank.labels[:3].tolist() == [0, 2, -1]

    def test_eta_zero_is_off_but_remembers(self, kind, weight, monkeypatch):
        monkeypatch.setattr(losses, "finite_cross_entropy", None)  # nothing is computed
        monkeypatch.setattr(losses, "multi_prototype_loss", None)
        loss = kind(COUNTS, dim=4, eta=0.0, **ALWAYS)
        assert [loss(*batch(step), weight).item() for step in range(3)] == [0, 0, 0]
        assert loss.bank.filled > 0

    def test_the_global_generator_is_not_touched(self, kind, weight):
        before = torch.get_rng_state()
        loss = kind(COUNTS, dim=4, norm="max")
        loss(torch.ones(5, 4), torch.tensor([0, 1, 2, 2, 1]), weight)
        assert torch.equal(before, torch.get_rng_state())

    def test_same_seed_same_memory(self, kind, weight):
        runs = []
        for seed in (1, 1, 2):
            loss = kind(COUNTS, dim=4, norm="max", seed=seed)
            for step in range(20):
                loss(*batch(step), weight)
            runs.append(loss.bank.slot_labels)
        assert torch.equal(runs[0], runs[1])
        assert not torch.equal(runs[0], runs[2])

    def test_resume_is_exact(self, kind, weight):
        kwargs = {"dim": 4, "size": 5, "norm": "max"} | ({"momentum": 0.5} if kind is PrototypeMemoryLoss else {})
        whole, first, second = kind(COUNTS, **kwargs), kind(COUNTS, **kwargs), kind(COUNTS, **kwargs, seed=7)
        values = [whole(*batch(step), weight * step).item() for step in range(12)]
        for step in range(6):
            first(*batch(step), weight * step)
        second.load_state_dict(first.state_dict())
        assert [second(*batch(step), weight * step).item() for step in range(6, 12)] == values[6:]
        for key, value in whole.state_dict().items():
            assert torch.equal(value, second.state_dict()[key]), key

    def test_state_keys_are_frozen(self, kind, weight):
        bank = ["slot_rows", "slot_labels", "slot_calls", "cursor", "calls"]
        assert sorted(kind(COUNTS, dim=4).state_dict()) == sorted(
            ["class_counts", "step", "seed", *(f"bank.{key}" for key in bank)]
        )

    def test_the_memory_of_other_data_is_refused(self, kind):
        saved = kind(COUNTS, dim=4).state_dict()
        with pytest.raises(ValueError, match=str(COUNTS[::-1]).replace("[", r"\[")):
            kind(COUNTS[::-1], dim=4).load_state_dict(saved)
        late = kind(None, dim=4)
        late.load_state_dict(saved)
        assert late.class_counts is None

    @pytest.mark.parametrize("target", [*WRONG, torch.tensor([[0.7, 0.7, 0.0]] * 2)])
    def test_one_contract_for_targets(self, kind, target, weight):
        with pytest.raises(ValueError, match="label|target"):
            kind(COUNTS, dim=4)(torch.ones(2, 4), target, weight)

    def test_shapes_are_checked_before_anything_is_remembered(self, kind, weight):
        memory, labels, rows = kind(COUNTS, dim=4, norm="max"), torch.tensor([2, 2]), torch.ones(2, 4)
        for features in (rows[0], rows[None], rows[:, 1:], rows.long(), rows.numpy(), None):
            with pytest.raises(ValueError, match="features must be"):
                memory(features, labels, weight)
        for wrong in (weight[0], weight[:, 1:], weight[1:], torch.nn.Linear(4, 3), None):
            with pytest.raises(ValueError, match="weight"):
                memory(rows, labels, wrong)
        if kind is FeatureMemoryLoss:
            for bias in (torch.zeros(4), torch.zeros(3, 1), torch.zeros(()), 0.0):
                with pytest.raises(ValueError, match=r"bias must be a tensor of shape \(3,\)"):
                    memory(rows, labels, weight, bias)
        assert memory.bank.filled == 0

    def test_compiled_as_one_graph_equals_eager(self, kind, weight):
        eager, compiled = kind(COUNTS, dim=4, size=5, norm="max"), kind(COUNTS, dim=4, size=5, norm="max")
        call = torch.compile(compiled, fullgraph=True, backend="aot_eager")
        for step in range(8):
            torch.testing.assert_close(call(*batch(step), weight), eager(*batch(step), weight))
        for key, value in eager.state_dict().items():
            assert torch.equal(value, compiled.state_dict()[key]), key

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"size": 0}, "memory size.* 0"),
            ({"eta": -1.0}, "eta.*-1.0"),
            ({"eta": float("nan")}, "eta.*nan"),
            ({"eta": float("inf")}, "eta.*inf"),
            ({"beta": -1.0}, "beta.*-1.0"),
            ({"norm": "typo"}, "norm.*'typo'"),
            ({"start": -3}, "start.*-3"),
            ({"start": 0.5}, "start.*0.5"),
            ({"size": True}, "size.*True"),
            ({"size": 9 * 10**7}, "size.*90000000"),
            ({"size": 10**7, "dim": 4096}, "size 10000000"),
            ({"seed": 1.7}, "seed.*1.7"),
            ({"seed": 2**70}, f"seed.*{2**70}"),
        ],
    )
    @pytest.mark.parametrize("counts", [COUNTS, None])
    def test_bad_input(self, kind, kwargs, message, counts):
        with pytest.raises(ValueError, match=message):
            kind(counts, **{"dim": 4, **kwargs})


def on_a_rank(rank, path, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    weight = torch.nn.Parameter(torch.ones(3, 4).cumsum(1))
    losses = torch.nn.ModuleDict(
        {
            "f": FeatureMemoryLoss(COUNTS, 4, size=7, norm="max"),
            "sample": FeatureMemoryLoss(COUNTS, 4, size=7, norm="max", sample=3),
            "w": PrototypeMemoryLoss(COUNTS, 4, size=7, norm="max"),
        }
    )
    gradients = []
    for step in range(6):
        weight.grad = None
        sum(loss(*batch(10 * step + rank), weight) for loss in losses.values()).backward()
        dist.all_reduce(weight.grad)
        gradients.append(weight.grad / 2)
    torch.save((losses.state_dict(), gradients), f"{results}/{rank}.pt")
    features, labels = batch(0)
    with pytest.raises(ValueError, match=rf"batches of \[{len(labels)}, {len(labels) - 1}\] rows"):
        losses["f"](features[rank:], labels[rank:], weight)
    dist.barrier()  # torch 2.4: who leaves first may keep the other waiting
    dist.destroy_process_group()


def test_two_ranks_hold_one_memory_and_share_its_gradient(tmp_path):
    two_ranks(on_a_rank, tmp_path / "store", tmp_path)
    (state, gradients), (other, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for key, value in state.items():
        assert torch.equal(value, other[key]), key
    # One process that sees both halves of each batch.
    loss, sampled = (FeatureMemoryLoss(COUNTS, 4, size=7, norm="max", sample=k) for k in (0, 3))
    weight = torch.nn.Parameter(torch.ones(3, 4).cumsum(1))
    for step in range(6):
        x, y = (torch.cat(parts) for parts in zip(batch(10 * step), batch(10 * step + 1), strict=True))
        gradient = torch.autograd.grad(loss(x, y, weight) + sampled(x, y, weight), weight)[0]
        torch.testing.assert_close(gradients[step], gradient)
    assert torch.equal(loss.bank.slot_rows, state["f.bank.slot_rows"])
