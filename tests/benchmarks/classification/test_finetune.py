"""Rows of the fine-tuning: which images are held out, what each run gives, and that nothing is run twice."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.cells import read_rows
from benchmarks.classification import finetune
from benchmarks.classification.data import Images

ERRORS = {"error": 50.0, "head": 20.0, "medium": 40.0, "tail": 70.0}


class Answers:
    """A finished run that is best at tau 1.4, where it says which tau it was asked for."""

    logits = "of the memory classifier"

    def __init__(self, folder, test):
        assert (folder / "results.json").exists() and test in ("test", "held_out")

    def errors(self, logits):
        return ERRORS | {"error": 45.0}

    def adjusted(self, tau):
        return ERRORS | {"error": 50.0 - tau, "class_error": abs(tau - 1.4)}


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """The command on a trainer that trains nothing; the arguments of its runs."""
    calls = []

    def train(args):
        calls.append(args)
        folder = tmp_path / "state" / args.experiment
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps({"versions": {"torch": "2"}, "seconds": 1.0}))

    def command(*argv):
        folder = tmp_path / "state" / "cifar100_lt"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "done").write_text("abc")
        shared = ["--data", ".", "--weights", "w.pth", "--datasets", "cifar100_lt"]
        finetune.main([*shared, "--results", str(tmp_path / "rows"), "--state-dir", str(tmp_path / "state"), *argv])
        rows = read_rows(tmp_path / "rows", finetune.Cell)
        return {(row["test"], row["method"], row["seed"]): row for row in rows}

    monkeypatch.setattr(finetune, "train", train)
    monkeypatch.setattr(finetune, "Finished", Answers)
    return SimpleNamespace(calls=calls, command=command, state=tmp_path / "state")


def test_tau_is_chosen_on_held_out_images_and_one_run_gives_four_rows(trained):
    rows = trained.command("--choose")
    assert rows["held_out", "lr0.001", 0]["tau"] == 1.4
    assert len(list(trained.state.glob("*.lock"))) == len(finetune.LEARNING_RATES)  # each run has its own
    assert {call.val_split for call in trained.calls} == {"held_out"}
    assert {call.train_split for call in trained.calls} == {"fit"}
    assert [call.lr for call in trained.calls] == list(finetune.LEARNING_RATES)
    trained.calls.clear()
    rows = trained.command("--runs", "mbj", "--seeds", "3")
    (call,) = trained.calls
    assert call.mbj and call.seed == 3 and call.train_split == "train" and call.pretrained and call.opt == "adamw"
    errors = {method: rows["test", method, 3]["error"] for method in finetune.OF_MBJ}
    assert errors == {"ce": 50.0, "logit_adjusted": 49.0, "logit_adjusted_chosen": 48.6, "mbj": 45.0}


def test_a_finished_run_is_not_run_again_and_an_open_one_goes_on(trained):
    trained.command("--runs", "balanced_softmax")
    trained.command("--runs", "balanced_softmax")
    assert len(trained.calls) == 1 and trained.calls[0].loss == "balanced_softmax"
    last = trained.state / "cifar100_lt-test-balanced-0" / "last.pth.tar"
    last.parent.mkdir()
    last.touch()
    trained.command("--runs", "balanced")
    assert trained.calls[1].resume == str(last) and trained.calls[1].mbj_recipe == "balanced"


def test_a_fifth_of_each_class_and_one_image_at_least_is_held_out():
    labels, ranks = np.repeat([0, 1], [10, 3]), np.array([*range(10), *range(3)])
    pixels = np.arange(13)
    images = Images(pixels, labels, ranks, np.arange(40), np.repeat([0, 1], 20), "drawn")
    splits = {name: (list(rows), list(of)) for name, rows, of in finetune._splits(images)}
    assert splits["held_out"] == ([8, 9, 12], [0, 0, 1])
    assert splits["fit"][0] == [0, 1, 2, 3, 4, 5, 6, 7, 10, 11] and splits["train"][0] == list(pixels)
    assert splits["glance"] == ([0, 10, 20, 30], [0, 0, 1, 1])
