"""The bank against a deque, and the promises of its docstring."""

from collections import deque

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mbj_plugin import MemoryBank
from mbj_plugin.memory import snapshot


def fill_like_deque(size, dim, batches):
    bank, reference = MemoryBank(size, dim), deque(maxlen=size)
    for rows, labels, keep in batches:
        bank.enqueue(rows, labels, keep)
        keep = torch.ones_like(labels, dtype=torch.bool) if keep is None else keep
        reference.extend(
            (row.tolist(), int(label))
            for row, label, k in zip(rows, labels, keep, strict=True)
            if k and label >= 0 and torch.isfinite(row).all()
        )
    return bank, list(reference)


def content(bank):
    """Filled rows from the oldest to the newest, read off the cursor."""
    order = [(int(bank.cursor) + i) % bank.size for i in range(bank.size)]
    return [(bank.rows[i].tolist(), int(bank.labels[i])) for i in order if bank.labels[i] >= 0]


def random_batches(count, dim, seed):
    g = torch.Generator().manual_seed(seed)
    for _ in range(count):
        n = int(torch.randint(0, 9, (), generator=g))
        rows = torch.randn(n, dim, generator=g)
        rows[torch.rand(n, generator=g) < 0.1] = float("nan")
        keep = torch.rand(n, generator=g) < 0.6 if n % 2 else None
        yield rows, torch.randint(-1, 5, (n,), generator=g), keep


@pytest.mark.parametrize("size", [1, 3, 7, 50])
def test_same_as_a_deque(size):
    bank, reference = fill_like_deque(size, 2, random_batches(20, 2, seed=size))
    assert content(bank) == reference
    assert bank.filled == len(reference)
    assert (bank.rows[bank.labels < 0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_host_it_is_the_same_to_the_bit(dtype):
    host, device = MemoryBank(5, 2), MemoryBank(5, 2)
    huge = (torch.full((2, 2), 3e38), torch.tensor([1, 2]), None)  # finite rows, whose sum is not
    for rows, labels, keep in [*random_batches(60, 2, seed=4), huge]:
        rows = rows.to(dtype).requires_grad_()
        host.enqueue(rows, labels, keep)
        keep = torch.ones(len(labels), dtype=torch.bool) if keep is None else keep
        device._enqueue_on_device(rows.detach().float(), labels, keep)
        for key, value in device.state_dict().items():
            assert torch.equal(value, host.state_dict()[key]), key
    assert host.rows.max() > 1e38 and not host.rows.requires_grad


def test_a_step_on_a_host_writes_the_stored_rows_alone(monkeypatch):
    def all_rows(*args):
        raise AssertionError("all rows")

    monkeypatch.setattr(MemoryBank, "_enqueue_on_device", all_rows)
    MemoryBank(3, 2).enqueue(torch.ones(2, 2), torch.tensor([0, 1]), torch.tensor([True, False]))
    MemoryBank(3, 2).enqueue(torch.ones(2, 2), torch.tensor([0, 1]))
    with FakeTensorMode(), pytest.raises(AssertionError, match="all rows"):  # values that nobody knows, on a CPU
        MemoryBank(3, 2).enqueue(torch.ones(2, 2), torch.tensor([0, 1]))


@pytest.mark.parametrize("elsewhere", range(4))
def test_where_the_host_cannot_look_at_a_value_all_rows_are_written(elsewhere, monkeypatch):
    called = []
    monkeypatch.setattr(MemoryBank, "_enqueue_on_device", lambda *args: called.append(args))
    bank, given = MemoryBank(3, 2), [torch.ones(2, 2), torch.tensor([0, 1]), torch.tensor([True, False])]
    if elsewhere == 3:
        bank.to("meta")
    else:
        given[elsewhere] = given[elsewhere].to("meta")
    bank.enqueue(*given)
    assert called


def test_a_device_writes_each_slot_once():
    class Written(TorchDispatchMode):
        slots = torch.tensor([])

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.index_copy_.default:
                self.slots = args[2]
            return func(*args, **(kwargs or {}))

    bank = MemoryBank(3, 1)
    with Written() as written:  # on a GPU the order of two writes to one slot is anyone's
        bank._enqueue_on_device(torch.arange(8.0)[:, None], torch.arange(8), torch.ones(8, dtype=torch.bool))
    assert sorted(written.slots.tolist()) == [0, 1, 2, 3, 3, 3, 3, 3]


def test_all_of_it_moves():
    assert all(buffer.is_meta for buffer in MemoryBank(3, 2).to("meta").buffers())


def test_of_more_rows_than_slots_the_newest_stay():
    bank = MemoryBank(3, 1)
    bank.enqueue(torch.arange(8.0)[:, None], torch.arange(8))
    assert sorted(bank.labels.tolist()) == [5, 6, 7]
    assert content(bank) == [([5.0], 5), ([6.0], 6), ([7.0], 7)]


def test_nothing_that_is_not_finite_enters():
    bank = MemoryBank(4, 2)
    rows = torch.tensor([[1.0, float("nan")], [float("inf"), 0.0], [1.0, 2.0]])
    bank.enqueue(rows, torch.tensor([0, 1, 2]))
    bank.enqueue(torch.tensor([[1e300, 0.0]], dtype=torch.float64), torch.tensor([3]))  # nor what is none in fp32
    assert content(bank) == [([1.0, 2.0], 2)]
    device = MemoryBank(4, 2)  # and the same where no value may be looked at
    device._enqueue_on_device(rows, torch.tensor([0, 1, 2]), torch.ones(3, dtype=torch.bool))
    for each in (bank, device):
        assert each.filled == 1 and torch.isfinite(each.slot_rows).all()


def test_ages_count_calls():
    bank = MemoryBank(3, 1)
    for label in range(2):
        bank.enqueue(torch.zeros(1, 1), torch.tensor([label]))
    bank.enqueue(torch.zeros(1, 1), torch.tensor([5]), torch.tensor([False]))
    assert bank.ages.tolist() == [2, 1, -1]
    assert (bank.filled, bank.cursor, bank.calls) == (2, 2, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_in_fp32_kept(dtype):
    bank = MemoryBank(2, 2)
    rows = torch.tensor([[1.5, -0.25]])
    bank.enqueue(rows.to(dtype), torch.tensor([1]))
    assert bank.rows.dtype == torch.float32
    assert torch.equal(bank.rows[:1], rows)
    bank.enqueue(torch.tensor([[1.0001, 3.0]]), torch.tensor([0]))
    bank.to(dtype)
    assert bank.rows.dtype == torch.float32
    assert bank.rows[1, 0] == torch.tensor(1.0001)


def test_saved_in_mid_wrap_it_goes_on_identically():
    batches = list(random_batches(12, 2, seed=3))
    whole, _ = fill_like_deque(5, 2, batches)
    first, _ = fill_like_deque(5, 2, batches[:6])
    second = MemoryBank(5, 2)
    second.load_state_dict(first.state_dict())
    for batch in batches[6:]:
        second.enqueue(*batch)
    assert first.cursor > 0
    for key, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


def test_state_is_frozen():
    state = {key: value.tolist() for key, value in MemoryBank(np.int64(2), np.int64(3)).state_dict().items()}
    rows = {"slot_rows": [[0.0] * 3] * 3, "slot_labels": [-1] * 3, "slot_calls": [0] * 3}
    assert state == {**rows, "cursor": 0, "calls": 0}
    assert list(state) == [*rows, "cursor", "calls"]


def test_a_buffer_is_kept_for_the_backward_pass_where_a_compiler_could_read_it_later():
    graphs, x = [], torch.ones(2)

    def keep_graph(graph, inputs):
        graphs.append(str(graph.graph))
        return graph.forward

    compiled = torch.compile(lambda x: snapshot(x), backend=keep_graph, fullgraph=True)
    assert torch.equal(compiled(x), x)
    assert "mbj_plugin.keep" in graphs[0]
    assert snapshot(x) is x
    kept = torch.ops.mbj_plugin.keep(x)
    assert torch.equal(kept, x) and kept.data_ptr() != x.data_ptr()


def test_compiled_as_one_graph_equals_eager():
    eager, compiled = MemoryBank(5, 2), MemoryBank(5, 2)
    enqueue = torch.compile(compiled.enqueue, fullgraph=True, backend="aot_eager")
    g = torch.Generator().manual_seed(0)
    for _ in range(6):
        batch = (
            torch.randn(4, 2, generator=g),
            torch.randint(-1, 3, (4,), generator=g),
            torch.rand(4, generator=g) < 0.7,
        )
        eager.enqueue(*batch)
        enqueue(*batch)
    for key, value in eager.state_dict().items():
        assert torch.equal(value, compiled.state_dict()[key]), key


def test_no_shape_and_no_python_value_depends_on_data():
    # On the meta device every read of a value raises, so a host sync or a data-dependent shape cannot hide.
    with torch.device("meta"):
        bank = MemoryBank(5, 2)
        bank.enqueue(torch.empty(4, 2), torch.empty(4, dtype=torch.long), torch.empty(4, dtype=torch.bool))
        with pytest.raises(RuntimeError):
            bool(bank.filled > 0)


@pytest.mark.parametrize(("size", "dim"), [(0, 2), (-1, 2), (0.5, 2), (3, 0), (float("inf"), 2), ("5", 2)])
def test_bad_sizes(size, dim):
    with pytest.raises(ValueError, match="memory (size|dim) must be"):
        MemoryBank(size, dim)


def test_a_memory_that_does_not_fit_is_an_error_that_says_its_size(monkeypatch):
    with pytest.raises(ValueError, match="memory of size 1000000 takes 80 GB: lower it"):
        MemoryBank(10**6, 20_000)

    def allocate(*_, **__):
        raise RuntimeError("not enough memory")

    monkeypatch.setattr(torch, "zeros", allocate)
    with pytest.raises(ValueError, match="memory of size 1000 takes 8 GB: lower it"):
        MemoryBank(1000, 2 * 10**6)


def test_bad_rows():
    with pytest.raises(ValueError, match=r"\(N, 2\)"):
        MemoryBank(3, 2).enqueue(torch.zeros(2, 3), torch.zeros(2).long())
    with pytest.raises(ValueError, match="keep must be"):
        MemoryBank(3, 2).enqueue(torch.zeros(2, 2), torch.zeros(2).long(), torch.tensor([True]))
    with pytest.raises(ValueError, match="labels"):
        MemoryBank(3, 2).enqueue(torch.zeros(2, 2), torch.zeros(3))
    for rows, labels in (
        (torch.zeros(2, 2, 2), torch.zeros(2)),
        (torch.zeros(2, 2), torch.zeros(2, 1)),
        (torch.zeros(2, 2), torch.zeros(2)),
    ):
        with pytest.raises(ValueError, match="rows must be .* and labels"):
            MemoryBank(3, 2).enqueue(rows, labels)
