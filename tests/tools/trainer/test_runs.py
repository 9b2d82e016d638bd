"""Which runs a command asks for, and what it prints."""

import logging
from argparse import Namespace

import pytest
import torch
from timm.optim import create_optimizer_v2, list_optimizers
from torch import nn

from mbj_plugin.tools.trainer import series
from mbj_plugin.tools.trainer import train as trainer
from mbj_plugin.tools.trainer.args import parse_args


@pytest.fixture
def all_runs(monkeypatch, tmp_path):
    """all_runs(...): what train_all returns, where each run is its name, method and seeds; the runs in their order."""
    told = []
    monkeypatch.setattr(series, "init_device", lambda args: None)

    def train(args, title):
        told.append(title)
        return args.experiment, args.mbj, args.seed, args.subset_seed

    def run(**flags):
        told.clear()
        args = parse_args(["--seed", "42", "--subset-seed", "7", "--output", str(tmp_path), "--experiment", "e"])
        results = series.train_all(Namespace(**vars(args) | {"device": "cpu"} | flags), train)
        return results, list(told)

    return run


def test_the_runs_that_are_asked_for(all_runs):
    assert all_runs() == ({"baseline": [("e", False, 42, 7)]}, [""])
    assert all_runs(mbj=True, resume="e/last")[0] == {"mbj": [("e", True, 42, 7)]}
    seeds = {"baseline": [("e/seed42", False, 42, 7), ("e/seed43", False, 43, 8)]}
    assert all_runs(seeds=2) == (seeds, ["run 1/2 (baseline, seed 42)", "run 2/2 (baseline, seed 43)"])
    assert all_runs(compare=True)[0] == {"mbj": [("e", True, 42, 7)]}  # it contains its baseline
    compared = {"baseline": [("e/baseline", False, 42, 7)], "mbj": [("e/mbj", True, 42, 7)]}
    results, order = all_runs(compare=True, mbj_classifier="shared")
    assert results == compared and list(results) == ["baseline", "mbj"]
    # MBJ refuses more models, so it comes first.
    assert order == ["run 1/2 (mbj, seed 42)", "run 2/2 (baseline, seed 42)"]
    _, order = all_runs(compare=True, seeds=2, mbj_memory="both")
    pairs = [(method, seed) for seed in (42, 43) for method in ("mbj", "baseline")]
    assert order == [f"run {i}/4 ({method}, seed {seed})" for i, (method, seed) in enumerate(pairs, 1)]


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
