"""The two losses: bank + draw + equation, in the order loss first, memory after."""

import copy
import inspect
import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from mbj_plugin import FeatureMemoryLoss, PrototypeMemoryLoss, losses, memory_cross_entropy, multi_prototype_loss
from mbj_plugin.sampling import counter_uniform, hard_labels, sample_slots

COUNTS = [100, 10, 2]
# Every row enters: the draws are someone else's test.
ALWAYS = {"beta": 0.0, "norm": "max"}


def batch(step, rows=6, dim=4, classes=3):
    g = torch.Generator().manual_seed(step)
    return torch.randn(rows, dim, generator=g), torch.randint(0, classes, (rows,), generator=g)


@pytest.fixture
def weight():
    return torch.nn.Parameter(torch.randn(3, 4, generator=torch.Generator().manual_seed(99)))


class TestFeatureMemoryLoss:
    def test_loss_first_then_enqueue(self, weight):
        loss = FeatureMemoryLoss(COUNTS, dim=4, size=20, eta=3.0, **ALWAYS)
        bias = torch.randn(3)
        (x0, y0), (x1, y1) = batch(0), batch(1)
        assert loss(x0, y0, weight, bias) == 0
        second = loss(x1, y1, weight, bias)
        torch.testing.assert_close(second, 3.0 * memory_cross_entropy(x0, y0, weight, bias))
        assert loss.bank.filled == 12

    def test_backward_after_enqueue_reaches_the_classifier_only(self, weight):
        loss = FeatureMemoryLoss(COUNTS, dim=4, size=20, eta=3.0, **ALWAYS)
        loss(*batch(0), weight)
        features, labels = batch(1)
        features.requires_grad_()
        loss(features, labels, weight).backward()
        assert features.grad is None
        expected = torch.autograd.grad(3.0 * memory_cross_entropy(*batch(0), weight), weight)[0]
        torch.testing.assert_close(weight.grad, expected)

    def test_rare_classes_enter_more_often(self, weight):
        loss = FeatureMemoryLoss(COUNTS, dim=4, size=100_000, norm="max")
        labels = torch.arange(3).repeat_interleave(4000)
        for _ in range(5):
            loss(torch.randn(12000, 4), labels, weight)
        entered = torch.bincount(loss.bank.labels[loss.bank.labels >= 0], minlength=3) / 20000
        torch.testing.assert_close(entered, loss.probs, rtol=0, atol=0.01)

    def test_unlabelled_rows_do_not_enter(self, weight):
        loss = FeatureMemoryLoss(COUNTS, dim=4, **ALWAYS)
        loss(torch.randn(3, 4), torch.tensor([-1, 2, -1]), weight)
        assert loss.bank.filled == 1

    @pytest.mark.parametrize("target", [[0.7, 0.0, 0.0, 0.3], [0.5, 0.3, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]])
    def test_soft_labels_enter_with_their_share(self, target):
        loss = FeatureMemoryLoss([8, 4, 2, 1], dim=4, size=100_000, beta=1.0, norm="max")
        target = torch.tensor(target)
        loss(torch.randn(40_000, 4), target.expand(40_000, 4), torch.randn(4, 4))
        entered = torch.bincount(loss.bank.labels[loss.bank.labels >= 0], minlength=4) / 40_000
        torch.testing.assert_close(entered, target * loss.probs, rtol=0, atol=0.01)

    def test_soft_labels_without_a_class_do_not_enter(self, weight):
        loss = FeatureMemoryLoss(COUNTS, dim=4, **ALWAYS)
        loss(torch.randn(3, 4), torch.tensor([[0.0, 0, 0], [float("nan"), 1, 0], [0, 1, 0]]), weight)
        assert loss.bank.labels[:2].tolist() == [1, -1]

    def test_weight_of_other_classes(self):
        with pytest.raises(ValueError, match="weight has 2 classes, the class counts 3"):
            FeatureMemoryLoss(COUNTS, dim=4)(torch.randn(2, 4), torch.tensor([0, 1]), torch.randn(2, 4))

    def test_before_the_start_it_remembers_but_does_not_count(self, weight):
        loss = FeatureMemoryLoss(COUNTS, dim=4, start=2, **ALWAYS)
        values = [loss(*batch(step), weight).item() for step in range(3)]
        assert values[:2] == [0, 0]
        assert values[2] > 0
        assert loss.bank.filled == 18

    def test_prior_correction_adds_the_log_of_the_memory_mix(self, weight):
        kwargs = {"dim": 4, "size": 20, "eta": 3.0, "beta": 0.5, "norm": "max"}
        loss = FeatureMemoryLoss([100, 10, 0], **kwargs, prior_correction=True)
        features, labels = torch.randn(200, 4), torch.arange(2).repeat(100)
        loss(features, labels, weight)
        rows, held = loss.bank.rows.clone(), loss.bank.labels.clone()
        mix = [100 * (1 / 100) ** 0.5, 10 * (1 / 10) ** 0.5]
        bias = torch.tensor([*(math.log(m / sum(mix)) for m in mix), -math.inf])
        expected = 3.0 * memory_cross_entropy(rows, held, weight, bias)
        value = loss(features, labels, weight)
        torch.testing.assert_close(value, expected)
        value.backward()
        assert torch.isfinite(weight.grad).all() and (weight.grad[2] == 0).all()
        # With beta = 1 the memory is uniform, and there is nothing to correct.
        plain, corrected = (
            FeatureMemoryLoss(COUNTS, dim=4, beta=1.0, norm="max", prior_correction=c) for c in (False, True)
        )
        for step in range(3):
            values = [loss(*batch(step), weight) for loss in (plain, corrected)]
            torch.testing.assert_close(*values)

    def test_prior_correction_and_a_bias_add_up(self, weight):
        loss = FeatureMemoryLoss(COUNTS, dim=4, size=20, eta=1.0, norm="max", prior_correction=True)
        loss.bank.enqueue(*batch(0))
        bias = torch.tensor([1.0, -2.0, 0.5])
        both = bias + (torch.tensor(COUNTS) * loss.probs).log()
        torch.testing.assert_close(loss(*batch(1), weight, bias), memory_cross_entropy(*batch(0), weight, both))

    @pytest.mark.parametrize("soft", [False, True])
    def test_the_draw_is_frozen(self, weight, soft):
        """The same seed gives the same run, in the next version too."""
        loss = FeatureMemoryLoss(COUNTS, dim=4, size=5, norm="max", seed=3)
        torch.manual_seed(0)
        x, y = torch.randn(400, 4), torch.randint(0, 3, (400,)).where(torch.rand(400) > 0.1, torch.tensor(-100))
        given = torch.rand(400, 3) if soft else y.int()
        loss(x, given, weight)
        seed, step = torch.tensor(3), torch.tensor(0)
        drawn = hard_labels(given, counter_uniform(seed, step, 400, stream=1))
        enters = (counter_uniform(seed, step, 400, stream=0) < loss.probs[drawn.clamp(min=0)]) & (drawn >= 0)
        assert torch.equal(loss.bank.rows.sort(0).values, x[enters][-5:].sort(0).values)
        assert sorted(loss.bank.labels.tolist()) == sorted(drawn[enters][-5:].tolist())
        # Of the memory too.
        whole = copy.deepcopy(loss)
        loss.sample = 2
        slots = sample_slots(whole.bank.labels >= 0, counter_uniform(seed, step + 1, 5, stream=-1), 2)
        expected = 15.0 * memory_cross_entropy(whole.bank.rows[slots], whole.bank.labels[slots], weight)
        assert torch.equal(loss(x, given, weight), expected)

    @pytest.mark.parametrize("world", [2, 3])
    @pytest.mark.parametrize("filled", [0, 1, 5, 7])
    @pytest.mark.parametrize("sample", [0, 4])
    def test_the_mean_of_the_ranks_is_the_whole(self, weight, filled, sample, world):
        loss = FeatureMemoryLoss(COUNTS, dim=4, size=7, sample=sample)
        loss.bank.enqueue(torch.randn(filled, 4), torch.arange(filled) % 3)
        whole = loss._memory_loss(weight, None, 0, 1)
        parts = [loss._memory_loss(weight, None, rank, world) for rank in range(world)]
        gradients = [torch.autograd.grad(value, weight)[0] for value in (whole, sum(parts) / world)]
        torch.testing.assert_close(*gradients)
        torch.testing.assert_close(sum(parts) / world, whole)
        assert (whole > 0) == (filled > 0)

    def test_rows_of_all_ranks_enter_in_their_order(self, weight, monkeypatch):
        (x0, y0), (x1, y1) = batch(0), batch(1)

        def all_gather(parts, mine):
            other = y0 if mine.ndim == 1 else x0
            assert mine.dtype == other.dtype and not mine.requires_grad
            for part, rows in zip(parts, (other, mine), strict=True):
                part.copy_(rows)

        monkeypatch.setattr(losses, "rank_and_world", lambda: (1, 2))
        monkeypatch.setattr(losses.dist, "all_gather", all_gather)
        monkeypatch.setattr(losses, "_check_even", lambda rows: None)
        loss = FeatureMemoryLoss(COUNTS, dim=4, size=20, **ALWAYS)
        loss(x1.requires_grad_(), y1, weight)
        assert torch.equal(loss.bank.rows[:12], torch.cat([x0, x1])) and loss.bank.filled == 12
        assert torch.equal(loss.bank.labels[:12], torch.cat([y0, y1]))
        # Out of training nothing is shared: each rank may see other batches.
        monkeypatch.setattr(losses.dist, "all_gather", None)
        torch.testing.assert_close(loss.eval()(x1, y1, weight), loss._memory_loss(weight, None, 0, 1))

    def test_before_the_start_weight_and_bias_are_in_use(self, weight):
        bias = torch.nn.Parameter(torch.zeros(3))
        for parameters in ((weight,), (weight, bias)):
            value = FeatureMemoryLoss(COUNTS, dim=4, start=9)(*batch(0), *parameters)
            assert {node.variable for node, _ in value.grad_fn.next_functions if node} == set(parameters)

    def test_a_sample_may_be_the_whole_memory(self, weight):
        whole, sampled = (FeatureMemoryLoss(COUNTS, dim=4, size=6, sample=k, **ALWAYS) for k in (0, 6))
        values = [[loss(*batch(step), weight) for step in range(2)] for loss in (whole, sampled)]
        torch.testing.assert_close(*values)
        with pytest.raises(ValueError, match="sample must be at most the memory's 6 rows, got 7"):
            FeatureMemoryLoss(COUNTS, dim=4, size=6, sample=7)

    def test_only_on_a_cpu_the_ranks_batches_are_counted(self, monkeypatch):
        monkeypatch.setattr(losses, "rank_and_world", lambda: (0, 2))
        monkeypatch.setattr(losses.dist, "all_gather", None)
        losses._check_even(torch.empty(2, 4, device="meta"))
        with pytest.raises(TypeError):
            losses._check_even(torch.empty(2, 4))

    def test_only_learning_steps_are_remembered(self, weight):
        loss = FeatureMemoryLoss(COUNTS, dim=4, **ALWAYS)
        with torch.no_grad():
            loss(*batch(0), weight)
        loss.eval()
        loss(*batch(0), weight)
        assert loss.bank.filled == 0
        assert loss.step == 0

    def test_counts_may_come_later(self, weight):
        loss = FeatureMemoryLoss(None, dim=4)
        with pytest.raises(ValueError, match="set_class_counts"):
            loss(*batch(0), weight)
        loss.set_class_counts(COUNTS)
        loss(*batch(0), weight)


class TestPrototypeMemoryLoss:
    def test_loss_first_then_enqueue(self, weight):
        loss = PrototypeMemoryLoss(COUNTS, dim=4, size=7, eta=0.5, **ALWAYS)
        (x0, y0), (x1, y1) = batch(0), batch(1)
        x1.requires_grad_()
        assert loss(x0, y0, weight) == 0
        old = weight.detach().clone()
        with torch.no_grad():
            weight.add_(1.0)
        second = loss(x1, y1, weight)
        similarity = F.normalize(x1, dim=1) @ F.normalize(old, dim=1).T
        torch.testing.assert_close(second, 0.5 * multi_prototype_loss(similarity, y1, torch.arange(3)))
        second.backward()
        assert weight.grad is None
        assert x1.grad.abs().sum() > 0
        assert loss.bank.filled == 6

    def test_sum_enters_one_prototype_a_step_on_average(self):
        assert PrototypeMemoryLoss(COUNTS, dim=4).probs.sum().item() == pytest.approx(1.0)

    def test_momentum_remembers_a_moving_average(self, weight):
        loss = PrototypeMemoryLoss(COUNTS, dim=4, momentum=0.9, **ALWAYS)
        first = weight.detach().clone()
        loss(*batch(0), weight)
        with torch.no_grad():
            weight.add_(1.0)
        loss(*batch(1), weight)
        torch.testing.assert_close(loss.bank.rows[:3], first)
        torch.testing.assert_close(loss.bank.rows[3:6], first + 0.1)

    def test_interval_remembers_one_of_so_many_calls(self, weight):
        loss = PrototypeMemoryLoss(COUNTS, dim=4, size=50, interval=3, **ALWAYS)
        expected = []
        for step in range(7):
            with torch.no_grad():
                weight.add_(1.0)
            loss(*batch(step), weight)
            expected += [weight.detach().clone()] * (step in (0, 3, 6))
        assert loss.bank.filled == 9
        torch.testing.assert_close(loss.bank.rows[:9], torch.cat(expected))

    @pytest.mark.parametrize("rank", [0, 1])
    def test_the_draw_is_frozen(self, weight, rank, monkeypatch):
        """Prototypes by seed and step alone; the class of a mixed image on each rank anew."""
        monkeypatch.setattr(losses, "rank_and_world", lambda: (rank, 2))
        loss = PrototypeMemoryLoss(range(1, 41), dim=4, size=99, beta=0.5, norm="max", seed=3, eta=1.0)
        torch.manual_seed(0)
        weight, seed, held, total = torch.randn(40, 4), torch.tensor(3), [], 0.0
        for step in range(6):
            x, soft = torch.randn(9, 4), torch.rand(9, 40)
            rows, labels = loss.bank.rows.clone(), loss.bank.labels.clone()
            value = loss(x, soft, weight)
            drawn = hard_labels(soft, counter_uniform(seed, torch.tensor(step), 9, stream=1 + rank))
            similarity = F.normalize(x, dim=1) @ F.normalize(rows, dim=1).T
            torch.testing.assert_close(value, multi_prototype_loss(similarity, drawn, labels))
            held += (counter_uniform(seed, torch.tensor(step), 40, stream=0) < loss.probs).nonzero()[:, 0].tolist()
            assert loss.bank.labels[: len(held)].tolist() == held and loss.bank.filled == len(held)
            total += value
        assert total > 0

    def test_scale_and_margin_are_equation_4_s(self, weight):
        loss = PrototypeMemoryLoss(COUNTS, dim=4, eta=1.0, scale=5.0, margin=0.35, **ALWAYS)
        loss(*batch(0), weight)
        x, y = batch(1)
        similarity = F.normalize(x, dim=1) @ F.normalize(weight, dim=1).T
        expected = multi_prototype_loss(similarity, y, torch.arange(3), 5.0, 0.35)
        torch.testing.assert_close(loss(x, y, weight), expected)

    def test_half_precision_is_computed_in_fp32(self, weight):
        half, full = (PrototypeMemoryLoss(COUNTS, dim=4, momentum=0.5, **ALWAYS) for _ in range(2))
        half.to(torch.bfloat16)
        for step in range(3):
            (x, y), w = batch(step), weight.detach() + step
            x, w = x.bfloat16(), w.bfloat16()
            value = half(x, y, w)
            assert value.dtype == torch.float32 and half.bank.rows.dtype == torch.float32
            torch.testing.assert_close(value, full(x.float(), y, w.float()), rtol=0.02, atol=0)

    def test_momentum_without_counts(self):
        loss = PrototypeMemoryLoss(None, dim=4, momentum=0.5, num_classes=3)
        assert loss.momentum_weight.shape == (3, 4)
        assert PrototypeMemoryLoss(COUNTS, 4, momentum=0.5, num_classes=7).momentum_weight.eq(torch.zeros(3, 4)).all()
        assert "momentum_weight" not in PrototypeMemoryLoss(COUNTS, dim=4).state_dict()

    def test_soft_labels_draw_one_class(self, weight):
        loss = PrototypeMemoryLoss(COUNTS, dim=4, **ALWAYS)
        loss(*batch(0), weight)
        x, y = batch(1)
        hard = copy.deepcopy(loss)(x, y, weight)
        assert torch.equal(loss(x, F.one_hot(y, 3).float(), weight), hard)

    def test_autocast_computes_in_fp32(self, weight):
        loss = PrototypeMemoryLoss(COUNTS, dim=4, **ALWAYS)
        loss(*batch(0), weight)
        x, y = batch(1)
        similarity = F.normalize(x.double(), dim=1) @ F.normalize(weight.double(), dim=1).T
        exact = multi_prototype_loss(similarity, y, torch.arange(3)) / 7
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert loss(x, y, weight).item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize("kind", [FeatureMemoryLoss, PrototypeMemoryLoss])
class TestBoth:
    def test_eta_rises_over_the_ramp(self, kind, weight):
        plain, ramped = (kind(COUNTS, dim=4, start=2, ramp=ramp, **ALWAYS) for ramp in (0, 4))
        pairs = [(plain(*batch(s), weight).item(), ramped(*batch(s), weight).item()) for s in range(8)]
        assert pairs[:2] == [(0, 0)] * 2
        for (whole, part), share in zip(pairs[2:], [0.25, 0.5, 0.75, 1, 1, 1], strict=True):
            assert part == pytest.approx(share * whole, rel=1e-6)

    def test_defaults_are_the_papers_and_off(self, kind):
        shared = {"beta": 1.5, "norm": "sum", "start": 0, "seed": 0, "ramp": 0, "sample": 0}
        own = {"size": 500, "eta": 15.0, "prior_correction": False}
        if kind is PrototypeMemoryLoss:
            own = {"size": 3500, "eta": 1 / 7, "scale": 16.0, "margin": 0.2, "momentum": 0.0, "interval": 1}
            own["num_classes"] = None
        given = {name: p.default for name, p in inspect.signature(kind).parameters.items() if p.default is not p.empty}
        assert given == shared | own

    def test_counts_go_where_the_memory_is_in_full_precision(self, kind):
        loss = kind(None, dim=4).to("meta")
        loss.set_class_counts(COUNTS)
        assert loss.probs.device.type == loss.class_counts.device.type == "meta"
        loss = kind(torch.tensor(COUNTS, dtype=torch.float64), dim=4)
        assert loss.probs.dtype == loss.class_counts.dtype == torch.float32
        assert loss.class_counts.tolist() == COUNTS
        assert all(buffer.is_meta for buffer in loss.to("meta").buffers())
        assert loss.probs.is_meta and loss.class_counts.is_meta

    def test_half_precision_before_the_start(self, kind, weight):
        loss = kind(COUNTS, dim=4, start=1)
        value = loss(torch.ones(2, 4).bfloat16(), torch.tensor([0, 1]), weight.bfloat16())
        assert value == 0 and value.dtype == torch.float32

    def test_a_class_without_images_does_not_enter_even_at_the_least_draw(self, kind, weight, monkeypatch):
        monkeypatch.setattr(losses, "counter_uniform", lambda seed, step, count, stream: torch.zeros(count))
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
        assert sorted(kind(COUNTS, dim=4).state_dict()) == sorted(["step", "seed", *(f"bank.{key}" for key in bank)])

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
            ({"ramp": 0.5}, "ramp.*0.5"),
            ({"beta": -1.0}, "beta.*-1.0"),
            ({"norm": "typo"}, "norm.*'typo'"),
            ({"start": -3}, "start.*-3"),
            ({"start": 0.5}, "start.*0.5"),
            ({"ramp": -1}, "ramp.*-1"),
        ],
    )
    @pytest.mark.parametrize("counts", [COUNTS, None])
    def test_bad_input(self, kind, kwargs, message, counts):
        with pytest.raises(ValueError, match=message):
            kind(counts, **{"dim": 4, **kwargs})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"scale": 0.0}, "scale.*0.0"),
        ({"scale": float("inf")}, "scale.*inf"),
        ({"margin": -0.1}, "margin.*-0.1"),
        ({"margin": float("inf")}, "margin.*inf"),
        ({"momentum": -0.1}, "momentum.*-0.1"),
        ({"interval": 0.5}, "interval.*0.5"),
        ({"momentum": 1.0}, "momentum.*1.0"),
        ({"interval": 0}, "interval.*0"),
        ({"class_counts": None, "momentum": 0.5}, "num_classes"),
    ],
)
def test_bad_prototype_input(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PrototypeMemoryLoss(**{"class_counts": COUNTS, "dim": 4, **kwargs})


def two_ranks(rank, path, results):
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
    dist.destroy_process_group()


def test_two_ranks_hold_one_memory_and_share_its_gradient(tmp_path):
    mp.spawn(two_ranks, (tmp_path / "store", tmp_path), nprocs=2)
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


def test_counter_uniform_is_uniform_and_independent():
    seed = torch.tensor(3)
    draws = torch.stack(
        [counter_uniform(seed, torch.tensor(step), 1000, stream) for step in range(50) for stream in (0, 1)]
    )
    assert draws.min() >= 0 and draws.max() < 1
    # Kolmogorov-Smirnov distance of 100,000 draws: 1.63 / sqrt(n) is the 1 % bound.
    distance = (draws.flatten().sort().values - torch.arange(100_000) / 100_000).abs().max()
    assert distance < 1.63 / 100_000**0.5
    correlation = torch.corrcoef(draws).fill_diagonal_(0)
    assert correlation.abs().max() < 5 / 1000**0.5
    assert torch.corrcoef(torch.stack([draws.flatten()[:-1], draws.flatten()[1:]]))[0, 1].abs() < 0.02
