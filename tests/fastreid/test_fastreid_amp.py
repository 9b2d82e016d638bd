"""fast-reid's mixed precision with a GradScaler, which it has for CUDA only, on the CPU."""

import functools
import importlib.util
import itertools
from types import SimpleNamespace

import pytest
import torch
from fastreid.engine import train_loop
from fastreid.utils.events import EventStorage

from mbj_plugin.fastreid.collect import mbj_heads

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="where there is CUDA, the models are there")
OPTS = [
    *("MODEL.MBJ.MEMORY", "both", "MODEL.MBJ.NORM", "max", "MODEL.MBJ.SIZE", 64, "MODEL.HEADS.CLS_LAYER", "CosSoftmax"),
    *("SOLVER.OPT", "SGD", "SOLVER.MOMENTUM", 0.9, "SOLVER.NESTEROV", False, "SOLVER.BASE_LR", 0.05),
    *("SOLVER.WEIGHT_DECAY", 0.0, "SOLVER.WEIGHT_DECAY_NORM", 0.0, "SOLVER.WEIGHT_DECAY_BIAS", 0.0),
]
STEPS, SCALE = 6, 2.0**10


@pytest.fixture
def amp_trainer(monkeypatch):
    """fast-reid's AMPTrainer as it is in its file, where the CUDA that it asks for is the CPU."""
    spec = importlib.util.spec_from_file_location("train_loop_as_it_is", train_loop.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def make(trainer, dtype, scale):
        module.torch = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: True, stream=torch.cuda.stream))
        monkeypatch.setattr("torch.cuda.amp.autocast", functools.partial(torch.autocast, "cpu", dtype))
        inner, scaler = trainer._trainer, torch.amp.GradScaler("cpu", init_scale=scale)
        return module.AMPTrainer(inner.model, inner.data_loader, inner.optimizer, inner.param_wrapper, scaler)

    return make


def batches(trainer):
    return list(itertools.islice(trainer._trainer._data_loader_iter, STEPS))


def copies(data):
    return [{key: value.clone() if torch.is_tensor(value) else value for key, value in b.items()} for b in data]


def by_hand(trainer, data, dtype, skipped):
    """Autocast, backward and step of plain PyTorch on the same model; the first steps only look. The scale does
    not move: fp16 would lose small gradients without one."""
    model = trainer.model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]  # the bottleneck's bias does not
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    for step, batch in enumerate(data):
        with EventStorage(0), torch.autocast("cpu", dtype):
            loss = sum(model(batch).values())
        gradients = torch.autograd.grad(loss * (SCALE / 2**skipped), parameters)
        if step < skipped:
            continue
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient / (SCALE / 2**skipped)
        optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("skipped", [0, 2])
def test_scaled_steps_are_the_plain_ones(make_trainer, amp_trainer, dtype, skipped):
    """A step whose gradient overflows is skipped: the memory has seen it, no weight has moved, and the scale halves."""
    scaled, plain = make_trainer(*OPTS), make_trainer(*OPTS)
    data = batches(scaled)
    expected = by_hand(plain, copies(data), dtype, skipped)
    first, calls = [p.detach().clone() for p in scaled.model.parameters()], itertools.count()
    next(scaled.model.parameters()).register_hook(lambda grad: grad * torch.inf if next(calls) < skipped else grad)
    trainer = amp_trainer(scaled, dtype, SCALE)
    trainer._data_loader_iter = iter(copies(data))
    losses, moved, scales = [], [], []
    write = trainer._write_metrics
    trainer._write_metrics = lambda loss_dict, seconds: (losses.append(loss_dict), write(loss_dict, seconds))
    with EventStorage(0):
        for _ in data:
            trainer.run_step()
            parameters = zip(first, scaled.model.parameters(), strict=True)
            moved.append(any(not torch.equal(before, now) for before, now in parameters))
            scales.append(trainer.grad_scaler.get_scale())
    assert moved == [step >= skipped for step in range(STEPS)]
    assert scales == [SCALE / 2 ** min(step + 1, skipped) for step in range(STEPS)]
    assert losses[-1]["loss_mbj"] > 0 and losses[-1]["loss_mbj"].dtype == torch.float32
    state = scaled.model.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=1e-6, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")
    for memory in mbj_heads(scaled.model)[0].memories.values():
        assert memory.step == STEPS and memory.bank.rows.isfinite().all() and memory.bank.filled > 0
