"""A run that goes on: what had started stays started, what changed is said, and two runs never share a folder."""

import csv
import json
import logging
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from test_train import QUICK, assert_same, fails, folder_flags, load, run

from mbj_plugin.tools.trainer import train as trainer
from mbj_plugin.tools.trainer.dataset_summary import DataFacts, memory_lines

# A run on the default digits that takes a moment.
SHORT = [*QUICK, "--imbalance-ratio", "10"]
MBJ, LDAM = ["--mbj", "--mbj-start", "0"], ["--loss", "benchmarks.rivals.ldam:LDAMLoss"]


def rows(folder):
    with (folder / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def memory_loss(folder):
    return [float(row["train_loss_memory"]) for row in rows(folder)]


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, "mbj_plugin")
    return lambda: " ".join(record.message for record in caplog.records)


@pytest.mark.parametrize("flags", [["--mbj"], LDAM], ids=["memory", "deferred weights"])
def test_what_a_checkpoint_has_started_stays_started(tmp_path, said, flags):
    flags = [*SHORT, *flags, "--sched", "cosine"]
    _, half = run(tmp_path, *flags, "--epochs", "2")
    last = tmp_path / "run" / "last.pth.tar"
    _, on = run(tmp_path, *flags, "--epochs", "4", "--resume", str(last))  # auto is epoch 2 of 4
    assert half["start"] == on["start"] and half["start"]["epoch"] == 1
    assert "What started at epoch 1 stays on; this schedule alone would start it at 2." in said()
    if "--mbj" in flags:
        assert [loss > 0 for loss in memory_loss(tmp_path / "run")] == [False, True, True, True]
    assert "--loss" in fails(*SHORT, *flags[len(SHORT) :], "--loss", "focal", "--epochs", "6", "--resume", str(last))


def test_a_start_that_was_not_reached_is_said_and_moves_with_the_schedule(tmp_path, said):
    flags = [*SHORT, "--mbj", "--sched", "cosine"]
    _, half = run(tmp_path, *flags, "--epochs", "1")  # half an epoch is the first
    assert half["start"]["epoch"] >= 1 and "it trains without MBJ. Set --mbj-start" in said()
    _, on = run(tmp_path, *flags, "--epochs", "4", "--resume", str(tmp_path / "run" / "last.pth.tar"))
    assert on["start"]["epoch"] == 2 and on["start"]["calls"] == 2 * (on["start"]["calls"] // 2)
    assert [loss > 0 for loss in memory_loss(tmp_path / "run")] == [False] * 2 + [True] * 2


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


def test_a_run_that_lacks_its_results_alone_is_evaluated(finished, tmp_path, monkeypatch, said):
    """It was killed after its last checkpoint."""
    folder = shutil.copytree(finished, tmp_path / "run")
    before = json.loads((folder / "results.json").read_text())
    (folder / "results.json").unlink()
    monkeypatch.setattr(trainer, "train_one_epoch", lambda *_: pytest.fail("it trains"))
    flags = ("--epochs", "1", "--lr", "0.1", "--resume", str(folder / "last.pth.tar"))
    results, _ = run(tmp_path, *SHORT, *flags)
    assert json.loads((folder / "results.json").read_text()) == results and 0 < results["seconds"] < 600
    assert all(results[key] == before[key] for key in ("classifiers", "best")) and f"Written to {folder}" in said()


def test_a_loss_that_is_no_number_is_said_once(tmp_path, caplog):
    run(tmp_path, *SHORT, "--epochs", "3", "--lr", "1e30")
    (said,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert said.startswith("The training loss is nan from epoch 0 on: lower --lr") and "--clip-grad" in said


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
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(trainer, "train_one_epoch", stop_in_epoch(3))
        trainer.main([*flags, "--experiment", "cut"])
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_one_epoch", stop_in_epoch(1))  # one epoch is left
        trainer.main([*flags, "--experiment", "cut"])
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


@pytest.mark.parametrize(
    "flags",
    [
        [*MBJ, "--sched", "cosine", "--sched-on-updates", "--grad-accum-steps", "2", "--lr-noise", "0.2"],
        [*LDAM, "--sched", "step", "--decay-epochs", "1"],
    ],
    ids=["on updates", "deferred weights"],
)
def test_schedules_resume_exactly(tmp_path, monkeypatch, flags):
    flags = [*SHORT, *flags, "--eval-metric", "loss", "--lr", "1e-6"]
    flags = [*flags, "--epochs", "4"]
    results, whole = run(tmp_path, *flags, name="whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer, "train_one_epoch", stop_in_epoch(2))
        run(tmp_path, *flags, name="cut")
    assert load(tmp_path / "cut/last.pth.tar")["epoch"] == 1
    _, resumed = run(tmp_path, *flags, "--resume", str(tmp_path / "cut/last.pth.tar"), name="cut")
    rates = [row["lr"] for row in rows(tmp_path / "whole")]
    assert len(set(rates)) > 2, "the rate hardly changed: nothing is tested"
    assert [row["lr"] for row in rows(tmp_path / "cut")] == rates
    assert_same(
        whole, resumed, ("state_dict", "optimizer", "batch_loss", *(["task_state"] if "--mbj" in flags else []))
    )
    losses = [float(row["eval_loss"]) for row in rows(tmp_path / "cut")]
    assert load(tmp_path / "cut/model_best.pth.tar")["metric"] == min(losses)
    assert results["best"] == {"metric": "loss", "value": min(losses), "epoch": losses.index(min(losses))}


def test_a_folder_holds_one_run(finished):
    before, last = (finished / "summary.csv").read_bytes(), finished / "last.pth.tar"
    message = fails(*SHORT, "--output", str(finished.parent), "--experiment", "run")
    assert "another --experiment" in message and f"--resume {last}" in message
    assert (finished / "summary.csv").read_bytes() == before


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
    flags = [*folder_flags(images), *MBJ, "--epochs", "2", "--resume", str(root / "run/last.pth.tar")]
    assert message in fails(*flags)


def test_the_start_of_a_run_says_what_it_trains_on(tmp_path, image_folder, said):
    trainer.main([*folder_flags(image_folder), "--epochs", "2", "--mbj", "--output", str(tmp_path), "--mbj-start", "1"])
    assert "42 training images in 3 classes, from 24 ('class0') to 6 ('class2'); 18 for evaluation." in said()
    assert "The memory loss starts at epoch 1 of 2." in said()


def test_a_memory_that_stays_nearly_empty_is_said_once_with_the_way_out(tmp_path, image_folder, said):
    flags = [*folder_flags(image_folder), "--epochs", "1", "--mbj", "--output", str(tmp_path)]
    trainer.main([*flags, "--mbj-start", "0", "--mbj-norm", "sum"])
    line = "At the end of the run the memory of features will hold about 9 entries, and its size is 500"
    assert said().count(line) == 1 and "'class2', has 6 images" in said()
    assert "--mbj-norm max or a smaller --mbj-beta" in said() and "--mbj-size" in said()


@pytest.mark.parametrize(
    ("counts", "norm", "beta", "warned"),
    [
        (
            [40, 1, 20, 10],
            "max",
            1.5,
            "1.7 entries.* without this class 22 ",
        ),  # the sum of N^-.5, without the 1 by 10^1.5
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
    assert ("With --mbj-norm max the rarest class decides" in text) == (warned is not None)
    assert warned is None or re.search(f"'b', has 1 image, the next 10.*{warned}", text)


def test_a_young_average_is_said_and_the_model_itself_reported(tmp_path, said, capsys):
    flags = [*SHORT, "--epochs", "2", "--model-ema", "--output", str(tmp_path), "--experiment"]
    trainer.main([*flags, "young"])
    assert "--model-ema-warmup" in said() and "99%" in said() and capsys.readouterr().out.count("not averaged") == 2
    results = json.loads((tmp_path / "young/results.json").read_text())
    assert results["not_averaged"].keys() == results["classifiers"].keys() == {"batch", "batch_adjusted"}
    assert results["not_averaged"] != results["classifiers"]
    trainer.main([*flags, "warm", "--model-ema-warmup"])
    assert "not averaged" not in capsys.readouterr().out


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(size): a folder on a file system of that size, which a second call enlarges."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size, *more):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *more]), "tmpfs", str(folder)])
        if done.returncode:
            pytest.skip("no file system can be mounted here")
        return folder

    yield mount
    subprocess.run(["umount", "-l", str(folder)], check=False)


def test_a_full_disk_is_one_line_and_the_last_whole_checkpoint_resumes(small_disk):
    folder = small_disk("900k")  # a checkpoint takes 650 kB
    flags = [*SHORT, "--mbj", "--model-kwargs", "depth=8", "--output", str(folder), "--experiment"]
    last = folder / "run" / "last.pth.tar"
    message = fails(*flags, "run")
    assert f"cannot write {folder / 'run'} " in message and f"--resume {last}" in message
    left = {path.name for path in last.parent.iterdir()}
    assert load(last)["epoch"] == 0 and not {name for name in left if name.startswith("tmp") or name.endswith("part")}
    (folder / "full").write_bytes(b"0" * (shutil.disk_usage(folder).free // 4096 * 4096))
    assert f"cannot write {folder / 'other'} " in fails(*flags, "other")
    small_disk("8m", "remount")
    trainer.main([*flags, "run", "--resume", str(last)])
    trainer.main([*flags, "whole"])
    assert_same(load(folder / "whole/last.pth.tar"), load(last))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer", None),
        ("optimizer", {"state": {}, "param_groups": []}),
        ("epoch", -3),
        ("data", {"class_counts": 5}),
        ("rng_states", [{"torch": 5}]),
        ("rng_states", None),
        ("saver", 5),
        ("start", {"epoch": "x"}),
        ("batch_loss", 5),
        ("state_dict", {}),
        ("state_dict", {"conv1.weight": 5}),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_checkpoint_that_was_edited_is_one_line(finished, tmp_path, key, value):
    content = load(finished / "last.pth.tar") | {key: value}
    torch.save({k: v for k, v in content.items() if v is not None}, tmp_path / "last.pth.tar")
    flags = LDAM if key == "start" else []
    message = fails(*SHORT, *flags, "--lr", "0.1", "--resume", str(tmp_path / "last.pth.tar"))
    assert str(tmp_path / "last.pth.tar") in message


def stop_in_epoch(number):
    """train_one_epoch, until Control-C is pressed in an epoch; counted over all runs."""
    step, steps = trainer.train_one_epoch, []

    def stopped(*args):
        if len(steps) == number:
            raise KeyboardInterrupt
        steps.append(1)
        return step(*args)

    return stopped


def test_control_c_is_one_line_with_the_way_on(tmp_path, monkeypatch, capsys):
    for number, way in ((0, "no epoch was saved yet"), (1, f"go on by --resume {tmp_path / 'run' / 'last.pth.tar'}")):
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:  # the second has the first one's folder
            patch.setattr(trainer, "train_one_epoch", stop_in_epoch(number))
            trainer.main([*SHORT, "--epochs", "3", "--output", str(tmp_path), "--experiment", "run"])
        assert stop.value.code == 130 and f"mbj train: stopped; {way}" in capsys.readouterr().err.splitlines()


def test_flags_of_train_py_that_cost_little_and_stock_timm(tmp_path, image_folder):
    """The checkpoint is one of timm's, whose own loader takes it."""
    flags = [*folder_flags(image_folder), "--model", "resnet10t", "--model-kwargs", "--epochs", "1", "--lr", "1e-9"]
    more = ["--grad-checkpointing", "--drop-block", "0.1"]
    _, checkpoint = run(tmp_path, *flags, *more, "--mbj", "--mbj-start", "0")
    weights = checkpoint["state_dict"]
    last = str(tmp_path / "run" / "last.pth.tar")
    stock = timm.create_model("resnet10t", num_classes=3, checkpoint_path=last).state_dict()
    assert stock.keys() == weights.keys() and all(torch.equal(value, weights[key]) for key, value in stock.items())
    assert "--pretrained --pretrained-path" in fails(*flags, "--num-classes", "12", "--initial-checkpoint", last)
