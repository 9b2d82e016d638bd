"""train_timm through its command: real runs on the digits and on a folder of images, and resumes."""

import csv
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mbj_plugin.tools.trainer import train as trainer
from mbj_plugin.tools.trainer.args import parse_args

TOOL = Path(__file__).parents[3] / "tools" / "train_timm.py"


def run(tmp_path, *argv, name="run"):
    result = trainer.train(parse_args([*argv, "--output", str(tmp_path), "--experiment", name]))
    return result, load(tmp_path / name / "last.pth.tar")


def load(path):
    return torch.load(path, weights_only=False)


def assert_same(a, b, keys=("state_dict", "task_state", "optimizer")):
    for key in keys:
        flat_a, flat_b = (torch.utils._pytree.tree_leaves(c[key]) for c in (a, b))
        assert len(flat_a) == len(flat_b)
        for x, y in zip(flat_a, flat_b, strict=True):
            assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y, key


def fails(*argv):
    with pytest.raises(SystemExit) as error:
        trainer.main(["--no-progress", *argv])
    assert "\n" not in str(error.value)
    return str(error.value)


#: A run on the default digits that takes half a second.
QUICK = [
    *("--model-kwargs", "depth=8", "width=4", "--epochs", "2", "--decay-milestones", "1", "--warmup-epochs", "0"),
    "--no-progress",
]


def folder_flags(image_folder):
    return [
        *(str(image_folder), "--model", "resnet32_cifar", "--model-kwargs", "depth=8", "width=4", "-b", "6", "-j", "0"),
        *("--input-size", "3", "16", "16", "--epochs", "3", "--warmup-epochs", "0", "--lr", "0.02", "--no-progress"),
        *("--sched", "multistep", "--decay-milestones", "1", "--mbj-norm", "max"),
    ]


def test_main_job_is_one_run_with_every_answer(tmp_path, capsys):
    trainer.main(["--compare", *QUICK, "--output", str(tmp_path), "--experiment", "mbj"])
    lines = capsys.readouterr().out.splitlines()
    results = json.loads((tmp_path / "mbj/results.json").read_text())
    baseline, _ = run(tmp_path, *QUICK, name="baseline")
    assert list(results["classifiers"]) == ["batch", "batch_adjusted", "memory"]
    assert {name: results["classifiers"][name] for name in ("batch", "batch_adjusted")} == baseline["classifiers"]
    assert results["classifiers"]["memory"] == {key: results[key] for key in ("errors", "per_class_error")}
    for line, name in zip(lines[2:5], results["classifiers"], strict=True):
        assert f" {results['classifiers'][name]['errors']['error']:.2f} " in line
    with (tmp_path / "mbj/summary.csv").open() as file:
        row = list(csv.DictReader(file))[-1]
    for name, each in results["classifiers"].items():
        assert float(row[f"eval_{name}_error"]) == pytest.approx(each["errors"]["error"])
    assert results["mbj"]["eta"] == results["settings"]["mbj_eta"]
    manifest = json.loads((tmp_path / "mbj/manifest.json").read_text())
    assert manifest["class_counts"] == results["class_counts"]


def test_compare_and_seeds_where_the_features_are_others(tmp_path, caplog, capsys, monkeypatch):
    caplog.set_level("INFO", "mbj_plugin")
    ticks = itertools.count(0, 70)  # seconds of an epoch
    monkeypatch.setattr(trainer, "time", SimpleNamespace(time=time.time, monotonic=lambda: next(ticks)))
    flags = [*QUICK, "--compare", "--seeds", "2", "--mbj-classifier", "shared", "--table", "latex"]
    trainer.main([*flags, "--output", str(tmp_path), "--experiment", "e"])
    assert "--mbj-classifier shared" in caplog.text
    pairs = [(seed, method) for seed in (42, 43) for method in ("mbj", "baseline")]
    results = {
        (seed, method): json.loads((tmp_path / "e" / method / f"seed{seed}" / "results.json").read_text())
        for seed, method in pairs
    }
    for (seed, method), each in results.items():
        assert list(each["classifiers"]) == {"baseline": ["batch", "batch_adjusted"], "mbj": ["memory"]}[method]
        assert each["settings"]["seed"] == seed
    sums = [json.loads((tmp_path / f"e/mbj/seed{seed}/manifest.json").read_text())["sha256"] for seed in (42, 43)]
    assert sums[0] != sums[1]
    table = capsys.readouterr().out.splitlines()
    assert table[0].startswith("% Test error") and table[5].count("±") == 7
    assert ["MBJ" in line for line in table[5:8]] == [False, False, True]
    assert ["logit adjustment" in line for line in table[5:8]] == [False, True, False]
    runs = [line.split(": ")[0] for line in caplog.messages if line.startswith("run ")]
    assert runs == [f"run {i}/4 ({method}, seed {seed})" for i, (seed, method) in enumerate(pairs, 1)]
    lines = [line for line in caplog.messages if line.startswith("epoch")]
    assert [line[-10:] for line in lines] == ["01:10 left", "00:00 left"] * 4


def test_a_class_without_test_images_has_no_error(tmp_path, image_folder):
    images = shutil.copytree(image_folder, tmp_path / "images")
    for path in sorted((images / "train/class2").iterdir())[1:]:
        path.unlink()
    flags = [*folder_flags(images), "--mbj", "--val-fraction", "0.3", "--epochs", "1", "--output", str(tmp_path)]
    trainer.main([*flags, "--experiment", "run"])
    for each in json.loads((tmp_path / "run/results.json").read_text())["classifiers"].values():
        first, second, third = each["per_class_error"]
        assert third is None and each["errors"]["class_error"] == pytest.approx((first + second) / 2)


def test_with_eta_0_the_weights_are_the_baseline_s(tmp_path):
    _, baseline = run(tmp_path, *QUICK, name="baseline")
    for classifier in ("own", "shared"):
        flags = ("--mbj", "--mbj-eta", "0", "--mbj-start", "0", "--mbj-classifier", classifier)
        _, off = run(tmp_path, *QUICK, *flags, name=classifier)
        assert_same(baseline, off, ("state_dict",))


@pytest.mark.parametrize(
    "flags",
    [
        ["--clip-grad", "0.01", "--clip-mode", "value"],
        ["--clip-grad", "0.1", "--grad-accum-steps", "2", "--channels-last"],
        ["--opt", "lars", "--lr", "0.5", "--grad-accum-steps", "2"],
        ["--opt", "lookahead_adamw", "--amp", "--amp-dtype", "bfloat16", "--channels-last"],
        ["--model-ema", "--model-ema-decay", "0.7", "--mixup", "0.3", "--loss", "ce", "--smoothing", "0.1"],
        ["--torchcompile", "aot_eager", "--eval-metric", "class_error"],
        ["--loss", "balanced_softmax", "--sampler", "class-balanced", "--mbj-recipe", "balanced"],
        [
            *("--model", "deit_tiny_distilled_patch16_224", "--input-size", "1", "16", "16", "--mbj-start", "0"),
            *("--model-kwargs", "patch_size=4", "depth=1", "embed_dim=24", "num_heads=2", "img_size=16"),
        ],
    ],
    ids=lambda flags: flags[0] + flags[1],
)
def test_the_first_line_is_a_run_without_mbj_to_the_bit(tmp_path, flags):
    baseline, plain = run(tmp_path, *QUICK, *flags, name="baseline")
    results, own = run(tmp_path, *QUICK, *flags, "--mbj", name="own")
    assert baseline["classifiers"].items() <= results["classifiers"].items() and len(results["classifiers"]) > 1
    assert baseline.get("not_averaged", {}).items() <= results.get("not_averaged", {}).items()
    heads = [key for key, value in plain["state_dict"].items() if key.startswith(("fc.", "head"))]
    assert_same(
        *({"features": {k: v for k, v in each["state_dict"].items() if k not in heads}} for each in (plain, own)),
        ["features"],
    )
    assert not all(torch.equal(plain["state_dict"][key], own["state_dict"][key]) for key in heads)
    with (tmp_path / "baseline/summary.csv").open() as one, (tmp_path / "own/summary.csv").open() as other:
        for first, second in zip(csv.DictReader(one), csv.DictReader(other), strict=True):
            assert all(first[key] == second[key] for key in ("train_loss", "eval_batch_error", "lr"))


@pytest.mark.parametrize(
    "flags",
    [
        ["--mbj-memory", "both", "--mbj-momentum", "0.5"],
        ["--mbj-classifier", "shared"],
        ["--mixup", "0.5", "--cutmix", "0.5", "--smoothing", "0.1"],
        ["--bce-loss", "--smoothing", "0.1", "--grad-accum-steps", "2", "--clip-grad", "1.0"],
    ],
    ids=lambda flags: flags[0],
)
def test_flags_in_concert(tmp_path, image_folder, flags):
    _, checkpoint = run(tmp_path, *folder_flags(image_folder), "--mbj", *flags)
    assert checkpoint["epoch"] == 2
    assert (checkpoint["task_state"]["mbj"]["feature.bank.slot_labels"] >= 0).sum() > 10


def test_killed_and_resumed_it_is_the_run_that_was_never_stopped(tmp_path, image_folder):
    flags = [*folder_flags(image_folder), "-j", "1", "--epochs", "4", "--aa", "rand-m5", "--mixup", "0.2"]
    flags = [*flags, "--sampler", "square-root"]
    command = [sys.executable, str(TOOL), *flags, "--mbj", "--output", str(tmp_path), "--experiment", "cut"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    last, deadline = tmp_path / "cut" / "last.pth.tar", time.monotonic() + 120
    while not last.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = load(last)["epoch"]
    assert reached < 3, "the run ended before it could be killed"
    results, resumed = run(tmp_path, *flags, "--mbj", "--resume", str(last), name="cut")
    _, whole = run(tmp_path, *flags, "--mbj", name="whole")
    assert_same(whole, resumed)
    assert (tmp_path / "whole/summary.csv").read_text() == (tmp_path / "cut/summary.csv").read_text()
    baseline, _ = run(tmp_path, *flags, name="baseline")
    assert baseline["classifiers"].items() <= results["classifiers"].items()


def test_tar_files_stand_for_folders(tmp_path, image_folder):
    for split in ("train", "validation"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as tar:
            tar.add(image_folder / split, arcname=".")
    folder, _ = run(tmp_path, *folder_flags(image_folder), "--epochs", "1", "--mbj", name="folder")
    tars, _ = run(tmp_path, str(tmp_path), *folder_flags(image_folder)[1:], "--epochs", "1", "--mbj", name="tars")
    assert folder["class_counts"] == tars["class_counts"] == [24, 12, 6]
