"""The loop of train_timm step by step, on images of two numbers: what it asks of task, optimizer, schedule, files."""

import copy
from argparse import Namespace
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mbj_plugin.tools.trainer import train as trainer
from mbj_plugin.tools.trainer.checkpoint import ResumableTask

LR = 0.5
ARGS = {
    **{"grad_accum_steps": 1, "mixup_off_epoch": 0, "rank": 0, "progress": False, "world_size": 1, "prefetcher": True},
    **{"channels_last": False, "clip_grad": None, "clip_mode": "norm", "dist_bn": "reduce", "num_classes": 3},
    **{"eval_metric": "top1", "mbj": False},
}


class Loader(list):
    """Batches, with a sampler."""

    sampler = None
    mixup_enabled = True


class Task(ResumableTask):
    """timm's task, which writes down what it is asked."""

    def __init__(self, parts=()):
        super().__init__(nn.Linear(2, 3), nn.CrossEntropyLoss(), verbose=False)
        self.asked, self.parts = [], parts

    def forward(self, images, target):
        assert self.trainable_module.training
        self.asked.append("forward")
        output = super().forward(images, target)
        return {**output, **{name: output["loss"] * factor for name, factor in self.parts}}

    def get_clip_parameters(self, exclude_head=False):
        return list(self.trainable_module.parameters())[: 1 if exclude_head else 2]

    def update_ema(self, step=None):
        self.asked.append(("ema", step))

    @contextmanager
    def no_sync(self):
        self.asked.append("alone")
        yield


def batches(count):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(4, 2, generator=generator), torch.tensor([0, 1, 2, i % 3])) for i in range(count)]


def make_run(data, task=None, scheduler=None, scaler=None, **args):
    torch.manual_seed(0)
    task = task or Task()
    run = SimpleNamespace(
        args=Namespace(**{**ARGS, **args}),
        device=torch.device("cpu"),
        data=SimpleNamespace(train=Loader(data), mixup_fn=None, evaluation="set"),
        task=task,
        optimizer=torch.optim.SGD(task.trainable_module.parameters(), lr=LR),
        scheduler=scheduler,
        amp_autocast=nullcontext,
        loss_scaler=scaler,
        num_epochs=9,
    )
    return run


def by_hand(model, data, accumulate):
    """Plain SGD over windows of batches; the mean loss."""
    losses = []
    for first in range(0, len(data), accumulate):
        window = data[first : first + accumulate]
        model.zero_grad()
        for images, labels in window:
            losses.append(F.cross_entropy(model(images), labels))
            (losses[-1] / len(window)).backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= LR * p.grad
    return sum(losses).item() / len(losses)


def assert_same(model, expected):
    for found, value in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, value, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("count", "accumulate", "updates"),
    [(3, 1, [7, 8, 9]), (5, 2, [7, 8, 9]), (5, 3, [5, 6]), (4, 2, [5, 6]), (2, 9, [3]), (6, 4, [5, 6])],
)
def test_an_epoch_is_plain_sgd_over_windows(count, accumulate, updates):
    data, numbers = batches(count), []
    schedule = SimpleNamespace(step_update=lambda num_updates, metric: numbers.append((num_updates, metric)))
    run = make_run(data, scheduler=schedule, grad_accum_steps=accumulate)
    run.task.trainable_module.eval()  # as evaluation left it
    expected = copy.deepcopy(run.task.trainable_module)
    for p in run.task.trainable_module.parameters():
        p.grad = torch.ones_like(p)  # of whatever was before
    means = trainer.train_one_epoch(run, 2)
    assert means == {"loss": pytest.approx(by_hand(expected, data, accumulate), rel=1e-6)}
    assert_same(run.task.trainable_module, expected)
    assert [each[1] for each in run.task.asked if each[0] == "ema"] == updates
    assert numbers == [(number, None) for number in updates]
    assert "alone" not in run.task.asked


@pytest.mark.parametrize(
    ("mode", "bound", "clipped"), [("agc", 0.1, 1), ("norm", 0.0, 2), ("norm", 0.1, 2), ("norm", None, None)]
)
def test_what_a_loss_scaler_is_given(mode, bound, clipped):
    calls = []

    def scaler(loss, optimizer, clip_grad, clip_mode, parameters, need_update):
        assert optimizer is run.optimizer
        calls.append((loss.item(), clip_grad, clip_mode, parameters and len(parameters), need_update))

    data = batches(5)
    run = make_run(data, scaler=scaler, clip_grad=bound, clip_mode=mode, grad_accum_steps=3)
    before = copy.deepcopy(run.task.trainable_module)
    trainer.train_one_epoch(run, 0)
    assert_same(run.task.trainable_module, before)  # the step is the scaler's
    losses = [F.cross_entropy(before(images), labels).item() for images, labels in data]
    steps = [False, False, True, False, True]
    shares = [3, 3, 3, 2, 2]
    for call, loss, share, step in zip(calls, losses, shares, steps, strict=True):
        assert call == (pytest.approx(loss / share), bound, mode, clipped, step)


def test_ranks_speak_once_an_update_and_report_their_mean(monkeypatch):
    monkeypatch.setattr(trainer.utils, "reduce_tensor", lambda tensor, ranks: tensor / ranks + 10)
    data = batches(5)
    run = make_run(data, world_size=2, grad_accum_steps=2)
    mean = by_hand(copy.deepcopy(run.task.trainable_module), data, 2)
    assert trainer.train_one_epoch(run, 0) == {"loss": pytest.approx(mean / 2 + 10)}
    window = ["alone", "forward", "forward"]
    assert [each for each in run.task.asked if isinstance(each, str)] == [*window, *window, "forward"]


def test_the_parts_of_the_loss_are_reported_as_means_over_batches():
    parts = [("loss_batch", 2.0), ("loss_memory", 3.0), ("loss_classifier", 4.0), ("other", 5.0)]
    torch.manual_seed(0)
    means = trainer.train_one_epoch(make_run(batches(4), task=Task(parts)), 0)
    alone = trainer.train_one_epoch(make_run(batches(4)), 0)["loss"]
    assert means == pytest.approx({"loss": 2 * alone, "loss_classifier": 4 * alone, "loss_memory": 3 * alone})


def test_the_mean_of_half_precision_losses_is_no_half_precision_mean():
    values = iter(torch.tensor([256.0, 1.0, 1.0, 1.0]).bfloat16())  # whose sum bfloat16 rounds to 256
    run = make_run(batches(4))
    run.task.forward = lambda images, target: {"loss": next(values).clone().requires_grad_()}
    assert trainer.train_one_epoch(run, 0) == {"loss": 259 / 4}


def test_what_the_loader_and_a_lookahead_hear():
    run, heard = make_run(batches(1)), []
    run.data.train.sampler = SimpleNamespace(set_epoch=heard.append)
    run.optimizer.sync_lookahead = lambda: heard.append("lookahead")
    trainer.train_one_epoch(run, 7)
    assert heard == [7, "lookahead"]


@pytest.mark.parametrize("prefetcher", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
def test_device_layout_and_autocast_of_the_images(prefetcher, channels_last):
    """The device is ``meta``, which computes nothing, so that what was moved to it shows."""
    run, seen = make_run([], prefetcher=prefetcher, channels_last=channels_last), []
    run.device = torch.device("meta")
    run.amp_autocast = lambda: nullcontext(seen.append("autocast"))

    def task(images, target):
        last = images.is_contiguous(memory_format=torch.channels_last)
        seen.append((images.device.type, target.device.type, last))
        return {"loss": torch.zeros((), requires_grad=True)}

    run.task = task
    trainer._step(run, torch.zeros(2, 3, 4, 5), torch.zeros(2), True, 1)
    device = "cpu" if prefetcher else "meta"
    assert seen == ["autocast", (device, device, channels_last)]


@pytest.mark.parametrize(
    ("rank", "progress", "disable"),
    [(0, None, None), (0, True, False), (0, False, True), (1, True, True), (1, None, True)],
)
def test_who_shows_a_bar(monkeypatch, rank, progress, disable):
    shown = []
    monkeypatch.setattr(trainer, "tqdm", lambda loader, title, **kwargs: shown.append((title, kwargs)) or loader)
    trainer.train_one_epoch(make_run(batches(1), rank=rank, progress=progress), 2)
    assert shown == [("epoch 2/8", {"leave": False, "disable": disable})]


@pytest.mark.parametrize("averaged", [True, False])
@pytest.mark.parametrize(("ranks", "dist_bn"), [(1, "reduce"), (2, "reduce"), (2, "broadcast"), (2, "")])
def test_evaluation_is_of_the_average_where_there_is_one(monkeypatch, averaged, ranks, dist_bn):
    modules = {False: nn.Linear(1, 1), True: nn.Linear(1, 1) if averaged else None}
    spread, measured = [], []
    run = make_run([], world_size=ranks, dist_bn=dist_bn, channels_last="layout")
    run.log_prior = "prior"
    run.task = SimpleNamespace(
        get_trainable_module=lambda ema=False: modules[ema], get_eval_model=lambda ema=False: ("evaluated", ema)
    )
    monkeypatch.setattr(trainer.utils, "distribute_bn", lambda *arguments: spread.append(arguments))
    monkeypatch.setattr(trainer, "validate", lambda model, **kwargs: measured.append((model, kwargs)) or {"batch": 1})
    torch.manual_seed(5)
    if averaged:  # what the loader of timm's second evaluation draws
        torch.empty((), dtype=torch.int64).random_()
    state = torch.get_rng_state()
    torch.manual_seed(5)
    assert trainer._evaluate(run) == {"batch": 1}
    assert torch.equal(torch.get_rng_state(), state)
    assert measured == [
        (
            ("evaluated", averaged),
            {
                **{"loader": "set", "num_classes": 3, "device": run.device, "channels_last": "layout"},
                **{"amp_autocast": run.amp_autocast, "log_prior": "prior"},
            },
        )
    ]
    expected = [(module, 2, dist_bn == "reduce") for module in modules.values() if module is not None]
    assert spread == (expected if ranks > 1 and dist_bn else [])
    run.args.mbj = True  # one classifier for both losses is no baseline
    assert trainer._evaluate(run) == {"memory": 1}
