"""A run that goes on: what had started stays started, what changed is said, and two runs never share a folder."""

import csv
import errno
import json
import logging
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_train import assert_same, fails, folder_flags, load, run

from mbj_plugin.tools.trainer import train as trainer
from mbj_plugin.tools.trainer.dataset_summary import DataFacts, memory_lines

# A run on the default digits that takes a moment.
SHORT = ["--no-progress", "--warmup-epochs", "0", "--no-mbj-diagnostics", "--imbalance-ratio", "10"]


def rows(folder):
    with (folder / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def memory_loss(folder):
    return [float(row["train_loss_memory"]) for row in rows(folder)]


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, "mbj_plugin")
    return lambda: " ".join(record.message for record in caplog.records)


def test_what_a_checkpoint_has_started_stays_started(tmp_path, said):
    flags = [*SHORT, "--mbj", "--sched", "cosine"]
    run(tmp_path, *flags, "--epochs", "2")
    assert memory_loss(tmp_path / "run")[0] == 0 < memory_loss(tmp_path / "run")[1]
    last = tmp_path / "run" / "last.pth.tar"
    assert load(last)["start"]["epoch"] == 1
    run(tmp_path, *flags, "--epochs", "8", "--resume", str(last))  # auto is epoch 4 of 8
    assert min(memory_loss(tmp_path / "run")[1:]) > 0
    assert "What started at epoch 1 stays on; this schedule alone would start it at 4." in said()
    assert load(last)["start"]["epoch"] == 1


def test_a_start_that_was_not_reached_moves_with_the_schedule(tmp_path, said):
    flags = [*SHORT, "--mbj", "--sched", "cosine"]
    _, half = run(tmp_path, *flags, "--epochs", "1")  # half an epoch is the first
    assert half["start"]["epoch"] >= 1
    _, on = run(tmp_path, *flags, "--epochs", "6", "--resume", str(tmp_path / "run" / "last.pth.tar"))
    assert on["start"]["epoch"] == 3 and on["start"]["calls"] == 3 * (on["start"]["calls"] // 3)
    assert [loss > 0 for loss in memory_loss(tmp_path / "run")] == [False] * 3 + [True] * 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "has trained 1 epochs"),
        (["--epochs", "2", "--lr", "0.3"], "--lr 0.1, this command has 0.3"),
        (["--epochs", "2", "--mbj"], "without MBJ: leave out --mbj"),
        (["--epochs", "2", "--experiment", "another"], "in its own folder"),
    ],
    ids=["finished", "other flags", "mbj", "another folder"],
)
def test_a_finished_run_is_never_rewritten(finished, tmp_path, flags, message):
    before = {path: path.read_bytes() for path in finished.iterdir()}
    flags = ["--epochs", "1", "--resume", str(finished / "last.pth.tar"), *flags]
    assert message in fails(*SHORT, "--lr", "0.1", *flags)
    assert before == {path: path.read_bytes() for path in finished.iterdir()} and not any(tmp_path.iterdir())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of a run of one epoch."""
    root = tmp_path_factory.mktemp("finished")
    run(root, *SHORT, "--epochs", "1", "--lr", "0.1")
    return root / "run"


def test_what_a_run_with_mbj_and_a_bare_state_dict_are_told(tmp_path, finished):
    run(tmp_path, *SHORT, "--epochs", "1", "--mbj")
    assert "add --mbj" in fails(*SHORT, "--epochs", "2", "--resume", str(tmp_path / "run/last.pth.tar"))
    torch.save({"state_dict": load(finished / "last.pth.tar")["state_dict"]}, tmp_path / "weights.pth.tar")
    assert "--initial-checkpoint" in fails(*SHORT, "--resume", str(tmp_path / "weights.pth.tar"))


def test_a_series_that_was_stopped_goes_on_with_the_same_command(tmp_path, monkeypatch):
    flags = [*SHORT, "--epochs", "2", "--seeds", "2", "--mbj", "--output", str(tmp_path)]
    trainer.main([*flags, "--experiment", "whole"])
    step, steps = trainer.train_one_epoch, []

    def stopped(*args):
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(trainer, "train_one_epoch", stopped)
    with pytest.raises(SystemExit):
        trainer.main([*flags, "--experiment", "cut"])
    trainer.main([*flags, "--experiment", "cut"])
    assert len(steps) == 5  # one epoch was left
    for seed in ("seed42", "seed43"):
        whole, cut = (json.loads((tmp_path / name / seed / "results.json").read_text()) for name in ("whole", "cut"))
        assert whole["classifiers"] == cut["classifiers"]
    assert "--lr" in fails(*flags, "--experiment", "cut", "--lr", "0.01")


def test_a_run_that_was_killed_in_its_first_checkpoint_starts_again(tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("tmp.pth.tar", "args.yaml", "summary.csv"):
        (tmp_path / "run" / name).write_text("epoch,train_loss\n0,1\n")
    run(tmp_path, *SHORT, "--epochs", "1")
    assert len(rows(tmp_path / "run")) == 1 and not (tmp_path / "run/tmp.pth.tar").exists()


def test_deferred_weights_stay_on(tmp_path):
    flags = [*SHORT, "--loss", "benchmarks.rivals.ldam:LDAMLoss", "--sched", "cosine"]
    _, half = run(tmp_path, *flags, "--epochs", "2")
    _, on = run(tmp_path, *flags, "--epochs", "6", "--resume", str(tmp_path / "run" / "last.pth.tar"))
    assert half["start"] == on["start"] and half["start"]["epoch"] == 1


def test_plateau_resumes_exactly(tmp_path):
    flags = ["--sched", "plateau", "--patience-epochs", "0", "--decay-rate", "0.5", "--eval-metric", "loss"]
    flags = [*SHORT, *flags, "--lr", "1e-6", "--mbj", "--mbj-start", "0"]
    _, whole = run(tmp_path, *flags, "--epochs", "5", name="whole")
    run(tmp_path, *flags, "--epochs", "3", name="cut")
    _, resumed = run(tmp_path, *flags, "--epochs", "5", "--resume", str(tmp_path / "cut/last.pth.tar"), name="cut")
    assert len({row["lr"] for row in rows(tmp_path / "whole")}) > 1, "the rate never fell: nothing is tested"
    assert [row["lr"] for row in rows(tmp_path / "cut")] == [row["lr"] for row in rows(tmp_path / "whole")]
    assert_same(whole, resumed)
    assert whole["plateau"] == resumed["plateau"]
    assert load(tmp_path / "cut/model_best.pth.tar")["metric"] == min(
        float(row["eval_loss"]) for row in rows(tmp_path / "cut")
    )


def test_a_folder_holds_one_run(tmp_path):
    run(tmp_path, *SHORT, "--epochs", "1")
    again = [*SHORT, "--epochs", "1", "--output", str(tmp_path), "--experiment", "run"]
    before = (tmp_path / "run/summary.csv").read_bytes()
    last = tmp_path / "run" / "last.pth.tar"
    message = fails(*again)
    assert "holds a run already" in message and "another --experiment" in message and f"--resume {last}" in message
    assert (tmp_path / "run/summary.csv").read_bytes() == before


def test_two_runs_at_once_do_not_share_a_folder(tmp_path):
    (tmp_path / "run").mkdir()
    code = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX); print(1, flush=True)"
    other = subprocess.Popen(
        [sys.executable, "-c", f"{code}; input()", str(tmp_path / "run")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    other.stdout.readline()
    flags = [*SHORT, "--epochs", "1", "--output", str(tmp_path), "--experiment", "run"]
    assert "another process is training into" in fails(*flags)
    other.communicate("\n")
    trainer.main(flags)


@pytest.fixture(scope="module")
def folder_run(tmp_path_factory, image_folder):
    """A run of one epoch on a copy of the images, and that copy."""
    root = tmp_path_factory.mktemp("folder_run")
    images = shutil.copytree(image_folder, root / "images")
    result, checkpoint = run(root, *folder_flags(images), "--epochs", "1", "--mbj", "--mbj-start", "0")
    return root, result, checkpoint


def test_the_images_are_in_checkpoint_and_results(folder_run):
    root, result, checkpoint = folder_run
    facts = {"images": 42, "class_counts": [24, 12, 6], "class_names": ["class0", "class1", "class2"]}
    facts |= {"evaluation_images": 18}
    written = json.loads((root / "run/results.json").read_text())
    assert checkpoint["data"] == facts
    assert facts.items() <= written.items() and facts.items() <= result.items()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("rename", "class 1 was 12 images of class1, here it is 12 images of class1a"),
        ("add", "class 3 was none, here it is 12 images of class3"),
        ("remove", "class 0 was 24 images of class0, here it is 23"),
    ],
)
def test_a_checkpoint_of_other_images_is_refused(folder_run, tmp_path, change, message):
    root, *_ = folder_run
    images = shutil.copytree(root / "images", tmp_path / "images")
    for split in ("train", "validation"):
        if change == "rename":
            (images / split / "class1").rename(images / split / "class1a")
        if change == "add":
            shutil.copytree(images / split / "class1", images / split / "class3")
    if change == "remove":
        (images / "train/class0/0.png").unlink()
    flags = [
        *folder_flags(images),
        "--epochs",
        "2",
        "--mbj",
        "--mbj-start",
        "0",
        "--resume",
        str(root / "run/last.pth.tar"),
    ]
    assert message in fails(*flags)


def test_the_start_of_a_run_says_what_it_trains_on(tmp_path, image_folder, said):
    nested = tmp_path / "images"
    for split in ("train", "validation"):
        shutil.copytree(image_folder / split, nested / split)
        (nested / split / "class2").rename(nested / split / "left")
        (nested / split / "class2").mkdir()
        (nested / split / "left").rename(nested / split / "class2" / "left")
        shutil.copytree(nested / split / "class2" / "left", nested / split / "class2" / "right")
    trainer.main([*folder_flags(nested), "--epochs", "2", "--mbj", "--output", str(tmp_path), "--mbj-start", "1"])
    assert "48 training images in 4 classes, from 24 ('class0') to 6 ('left'); 24 for evaluation." in said()
    assert "its 3 folders became 4 classes" in said() and "class2/left" in said()
    assert "The memory loss starts at epoch 1 of 2." in said()


def test_a_memory_that_stays_nearly_empty_is_said_once_with_the_way_out(tmp_path, image_folder, said):
    flags = [*folder_flags(image_folder), "--epochs", "1", "--mbj", "--output", str(tmp_path)]
    trainer.main([*flags, "--mbj-start", "0", "--mbj-norm", "sum"])
    line = "The feature memory will hold about 9 of its 500 slots at the end of epoch 1"
    assert said().count(line) == 1 and "'class2' with 6 images" in said()
    assert "--mbj-norm max lets in 13" in said() and "--mbj-beta 1 lets in" in said() and "--mbj-size" in said()


@pytest.mark.parametrize(
    ("counts", "norm", "beta", "warned"),
    [
        ([40, 1, 20, 10], "max", 1.5, "1.7 rows.* without it 22 "),  # the sum of N^-.5, without the 1 by 10^1.5
        ([40, 3, 20, 10], "max", 1.5, None),
        ([40, 1, 20, 10], "sum", 1.5, None),
        ([40, 1, 20, 10], "max", 0.0, None),
        ([40, 1, 20, 1], "max", 1.5, None),
    ],
)
def test_one_tiny_class_that_decides_the_memory_is_said(counts, norm, beta, warned):
    memory = SimpleNamespace(bank=SimpleNamespace(labels=range(4)), beta=beta, norm=norm)
    facts = DataFacts(np.array(counts), list("abcd"), 10)
    text = "\n".join(memory_lines({"feature": memory}, facts, 0, 5, 3))
    assert ("--mbj-norm max it alone" in text) == (warned is not None)
    assert warned is None or re.search(f"'b', has 1 image, the next 10.*{warned}", text)


def test_a_run_that_ends_before_the_memory_starts_is_said(tmp_path, said):
    run(tmp_path, *SHORT, "--epochs", "1", "--mbj")
    assert "it trains without MBJ. Set --mbj-start" in said()


def test_a_young_average_is_said_and_the_model_itself_reported(tmp_path, said, capsys):
    flags = [*SHORT, "--epochs", "2", "--model-ema", "--output", str(tmp_path), "--experiment"]
    trainer.main([*flags, "young"])
    assert "--model-ema-warmup" in said() and "99%" in said() and capsys.readouterr().out.count("not averaged") == 2
    results = json.loads((tmp_path / "young/results.json").read_text())
    assert results["not_averaged"].keys() == results["classifiers"].keys() == {"batch", "batch_adjusted"}
    assert results["not_averaged"] != results["classifiers"]
    trainer.main([*flags, "warm", "--model-ema-warmup"])
    assert "not averaged" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file data/0"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_full_disk_is_one_line_and_old_checkpoints_stay(tmp_path, monkeypatch, error):
    save, epochs = torch.save, []

    def full(state, path, *args, **kwargs):
        epochs.append(state["epoch"])
        if len(epochs) < 2:
            return save(state, path, *args, **kwargs)
        path = tmp_path / "run" / "tmp.pth.tar"
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(torch, "save", full)
    message = fails(*SHORT, "--epochs", "3", "--output", str(tmp_path), "--experiment", "run")
    last = tmp_path / "run" / "last.pth.tar"
    assert "cannot write to" in message and "disk full" in message and f"--resume {last}" in message
    assert load(last)["epoch"] == 0 and not (tmp_path / "run/tmp.pth.tar").exists()


def test_control_c_is_one_line_with_the_way_on(tmp_path, monkeypatch, capsys):
    step, steps = trainer.train_one_epoch, []

    def stopped(*args):
        steps.append(1)
        if len(steps) in (1, 3):
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(trainer, "train_one_epoch", stopped)
    for way in ("no epoch was saved yet", f"go on by --resume {tmp_path / 'run' / 'last.pth.tar'}"):
        with pytest.raises(SystemExit) as stop:  # the second one has the folder that the first one left
            trainer.main([*SHORT, "--epochs", "3", "--output", str(tmp_path), "--experiment", "run"])
        assert stop.value.code == 130 and f"train_timm: stopped; {way}" in capsys.readouterr().err.splitlines()


def test_flags_of_train_py_that_cost_little(tmp_path):
    flags = [*SHORT, "--epochs", "1", "--dataset", "sklearn/digits", "--model", "resnet18", "--input-size", "3", "32"]
    flags = [*flags, "32", "--val-split", "test", "-b", "16", "-j", "0", "--mbj", "--lr", "1e-9", "--drop-block", "0.1"]
    more = ["--grad-checkpointing", "--head-init-scale", "0", "--head-init-bias", "2"]
    _, checkpoint = run(tmp_path, *flags, *more, "--imbalance-ratio", "50")
    weights = checkpoint["state_dict"]
    assert weights["fc.weight"].abs().max() < 1e-3 and (weights["fc.bias"] - 2).abs().max() < 1e-3
    last = str(tmp_path / "run" / "last.pth.tar")
    images = ["--num-classes", "12", "--initial-checkpoint", last]
    assert "--pretrained --pretrained-path" in fails(*flags, *images)
    assert "has no gradient checkpointing" in fails(*SHORT, "--grad-checkpointing")
