"""What a run and its epochs do, and in which order; which runs a command asks for."""

import itertools
import json
import logging
import math
import time
from argparse import Namespace
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from test_loop import batches, make_run
from timm.optim import create_optimizer_v2, list_optimizers
from torch import nn

from mbj_plugin.tools.trainer import series
from mbj_plugin.tools.trainer import train as trainer
from mbj_plugin.tools.trainer.progress import Progress


@pytest.fixture
def epochs(monkeypatch, tmp_path):
    """epochs(first, last, folder, ...): the results of the epochs, and everything that happened, in order."""
    happened, losses = [], [2.0] * 9

    def say(name, value=None):
        return lambda *arguments, **kwargs: happened.append((name, *arguments, *kwargs.values())) or value

    metrics = {"batch": {"images": [4, 4, 2], "wrong": [1, 2, 0], "top1": 60.0, "loss": 1.5}}
    saver = SimpleNamespace(best_metric=50, best_epoch=1)
    saver.save_checkpoint = lambda epoch, metric: happened.append(("save", epoch, metric)) or (metric, epoch)

    def diagnose(*arguments):
        happened.append(("diagnostics", *arguments))
        return SimpleNamespace(report=say("report", {"fill": 1.0}), close=say("close"))

    def train_epoch(run, epoch):
        happened.append(("train", epoch))
        run.optimizer.param_groups[1]["lr"] = epoch
        return {"loss": losses[epoch]}

    @contextmanager
    def wandb(args):
        happened.append(("wandb",))
        yield "to wandb"

    monkeypatch.setattr(trainer, "train_one_epoch", train_epoch)
    monkeypatch.setattr(trainer, "_evaluate", lambda run, averaged=True: happened.append(("evaluate",)) or metrics)
    monkeypatch.setattr(trainer, "EpochDiagnostics", diagnose)
    monkeypatch.setattr(trainer, "make_saver", lambda run, folder: saver)
    monkeypatch.setattr(trainer, "wandb_run", wandb)
    monkeypatch.setattr(trainer, "result", lambda *arguments: {"result": [*map(str, arguments[1:4]), arguments[4]]})
    monkeypatch.setattr(trainer, "log_epoch", lambda run, *arguments: happened.append(("log", *arguments)))

    def run_epochs(first, last, folder=tmp_path, monitor=None, scheduled=True, runs=("",), each=None, share=0.0):
        losses[: len(each or [])] = each or []
        run = make_run(batches(2))
        run.progress = Progress(runs, clock=itertools.count().__next__)  # a second each time that it is asked
        run.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 1.0})
        run.first_epoch, run.num_epochs, run.facts, run.data.counts = first, last, "facts", [10, 5, 2]
        run.task.monitor, run.choice, run.initial_share = monitor, "batch", share
        run.task.remember_rng = lambda: happened.append(("remember",))
        run.scheduler = SimpleNamespace(step=say("schedule")) if scheduled else None
        results = trainer._epochs(run, folder, time.time() - 100)
        assert 100 <= results["result"][3] < 200  # seconds
        return results, happened

    return run_epochs


def test_what_an_epoch_does_and_in_which_order(epochs, tmp_path, caplog):
    caplog.set_level(logging.INFO, "mbj_plugin")
    results, happened = epochs(1, 3, monitor="monitor")
    metrics = {"batch": {"images": [4, 4, 2], "wrong": [1, 2, 0], "top1": 60.0, "loss": 1.5}}

    def epoch(number):
        log = ("log", number, {"loss": 2.0}, {"fill": 1.0}, metrics, tmp_path, "to wandb")
        saved = [("report", number, {"loss_batch": 2.0}), log, ("save", number, 60.0)]
        return [("train", number), ("evaluate",), ("remember",), *saved, ("schedule", number + 1, 60.0)]

    start = [("diagnostics", "monitor", tmp_path, 1, 2), ("wandb",)]
    assert happened == [*start, *epoch(1), *epoch(2), ("close",)]
    assert results["result"][:3] == [str(metrics), "{}", "(60.0, 2)"]
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert (tmp_path / "results.json").read_text().startswith('{\n "result"')
    assert f"Written to {tmp_path}: results.json, " in caplog.text


def test_epochs_of_another_rank_or_without_diagnostics_and_schedule(epochs, tmp_path, caplog):
    caplog.set_level(logging.INFO, "mbj_plugin")
    results, happened = epochs(0, 1, folder=None, monitor="monitor")
    assert [each[0] for each in happened] == ["train", "evaluate", "remember", "schedule"]
    assert results["result"][2] == "(None, None)"
    assert not caplog.text and not list(tmp_path.iterdir())
    happened.clear()
    epochs(0, 1, scheduled=False)
    assert [each[0] for each in happened] == ["wandb", "train", "evaluate", "remember", "log", "save"]
    assert happened[4][3] == {}
    happened.clear()
    results, _ = epochs(0, 1, share=0.5)  # the model that is not averaged is evaluated too
    assert [each[0] for each in happened].count("evaluate") == 2 and "60.0" in results["result"][1]


def test_a_loss_that_is_no_number_is_said_once(epochs, caplog):
    epochs(0, 4, each=[2.0, math.nan, math.inf, 2.0])
    said = "The training loss is nan from epoch 1 on: lower --lr, or bound the gradient with --clip-grad 1."
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [said]


@pytest.mark.parametrize("last", [2, 1])
def test_a_run_that_is_over_is_evaluated(epochs, last):
    results, happened = epochs(2, last)
    assert [each[0] for each in happened] == ["evaluate", "wandb"]
    assert results["result"][2] == "(50, 1)"


@pytest.fixture
def all_runs(monkeypatch, tmp_path):
    """all_runs(...): what train_all returns, where each run is its name, method and seeds; all folders it looked at."""
    looked, told = [], []
    monkeypatch.setattr(series, "init_device", lambda args: None)
    monkeypatch.setattr(series, "held_by", lambda args: looked.append(args.experiment))

    def train(args, progress):
        told.append(progress)
        return args.experiment, args.mbj, args.seed, args.subset_seed

    def run(**flags):
        defaults = {
            "seeds": 1,
            "resume": "",
            "compare": False,
            "mbj": False,
            "experiment": "e",
            "output": str(tmp_path),
        }
        defaults |= {"mbj_memory": "feature", "mbj_classifier": "own", "opt": "sgd", "amp": False, "device": "cpu"}
        looked.clear(), told.clear()
        results = series.train_all(Namespace(**{**defaults, "seed": 42, "subset_seed": 7, **flags}), train)
        assert len(set(told)) == 1 and len(told) == len(told[0].runs)
        run.runs = told[0].runs
        return results, list(looked)

    return run


def test_the_runs_that_are_asked_for(all_runs):
    assert all_runs() == ({"baseline": [("e", False, 42, 7)]}, ["e"])
    assert all_runs(mbj=True, resume="e/last")[0] == {"mbj": [("e", True, 42, 7)]}
    seeds = {"baseline": [("e/seed42", False, 42, 7), ("e/seed43", False, 43, 8)]}
    assert all_runs(seeds=2) == (seeds, ["e/seed42", "e/seed43"])
    assert all_runs(compare=True)[0] == {"mbj": [("e", True, 42, 7)]}  # it contains its baseline
    compared = {"baseline": [("e/baseline", False, 42, 7)], "mbj": [("e/mbj", True, 42, 7)]}
    results, looked = all_runs(compare=True, mbj_classifier="shared")
    assert results == compared and list(results) == ["baseline", "mbj"]
    assert looked == ["e/mbj", "e/baseline"]  # MBJ refuses more models, so it comes first
    results, looked = all_runs(compare=True, seeds=2, mbj_memory="both")
    order = [(method, seed) for seed in (42, 43) for method in ("mbj", "baseline")]
    assert looked == [f"e/{method}/seed{seed}" for method, seed in order]
    assert all_runs.runs == [f"{method}, seed {seed}" for method, seed in order]


def step_of(opt, second, steps=3):
    """What an optimizer makes of one parameter, with a second one beside it or not."""
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3))]
    parameters += [nn.Parameter(torch.ones(3, 2))] * second
    optimizer = create_optimizer_v2([{"params": parameters}], opt, lr=0.1)
    for i in range(steps):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 3.0 + i)
        optimizer.step()
    return parameters[0].detach()


@pytest.mark.parametrize("opt", [name for name in list_optimizers() if not name.startswith(("bnb", "fused"))])
def test_optimizers_that_couple_parameters_are_known(opt):
    """--compare takes a run with MBJ for its baseline only where a second classifier changes nothing."""
    if opt == "adahessian":  # needs second derivatives; it draws a number for each parameter
        assert opt in series.COUPLING
        return
    known = any(name in opt for name in series.COUPLING)
    assert known or torch.equal(step_of(opt, False), step_of(opt, True))


@pytest.mark.parametrize(("rank", "printed"), [(None, True), ("0", True), ("1", False)])
def test_the_command(monkeypatch, capsys, rank, printed):
    configured, destroyed = [], []
    monkeypatch.setattr(logging, "basicConfig", lambda **kwargs: configured.append(kwargs))
    monkeypatch.setattr(logging.getLogger("timm"), "level", logging.NOTSET)
    monkeypatch.setattr(trainer.series, "train_all", lambda args, train: args.epochs)
    monkeypatch.setattr(trainer.series, "table", lambda results, style: f"{style} {results}")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: rank is not None)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: destroyed.append(rank))
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    trainer.main(["--epochs", "7", "--no-progress", "--table", "markdown"])
    out = capsys.readouterr().out
    assert out == ("markdown 7\n" if printed else "")
    assert configured == [{"format": "%(message)s", "level": logging.INFO}]
    assert logging.getLogger("timm").level == logging.WARNING
    assert destroyed == ([rank] if rank is not None else [])
