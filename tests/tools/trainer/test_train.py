"""train_timm through its command: real runs on the digits and on a folder of images, and resumes."""

import csv
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

from mbj_plugin.tools.trainer import series
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


def folder_flags(image_folder):
    return [
        *(str(image_folder), "--model", "resnet32_cifar", "--model-kwargs", "depth=8", "width=4", "-b", "6", "-j", "0"),
        *("--input-size", "3", "16", "16", "--epochs", "3", "--warmup-epochs", "0", "--lr", "0.02", "--no-progress"),
        *("--sched", "multistep", "--decay-milestones", "1", "--mbj-norm", "max"),
    ]


def test_main_job_is_one_run_with_every_answer(tmp_path, tiny, capsys):
    trainer.main(["--compare", *tiny, "--output", str(tmp_path), "--experiment", "mbj"])
    lines = capsys.readouterr().out.splitlines()
    results = json.loads((tmp_path / "mbj/results.json").read_text())
    baseline, _ = run(tmp_path, *tiny[1:] if tiny[0] == "--mbj" else tiny, name="baseline")
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


def test_compare_trains_a_second_run_where_the_features_are_others(tmp_path, tiny, caplog, capsys):
    caplog.set_level("INFO", "mbj_plugin")
    flags = ["--compare", *tiny, "--epochs", "1", "--output", str(tmp_path), "--experiment", "e"]
    trainer.main([*flags, "--mbj-classifier", "shared"])
    assert "--mbj-classifier shared" in caplog.text
    names = {
        name: list(json.loads((tmp_path / "e" / name / "results.json").read_text())["classifiers"])
        for name in ("baseline", "mbj")
    }
    assert names == {"baseline": ["batch", "batch_adjusted"], "mbj": ["memory"]}
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:5]] == ["cross-entropy", "logit", "MBJ"]


def test_seeds_change_the_run_and_the_images(tmp_path, tiny):
    flags = ["--seeds", "2", "--epochs", "1", "--output", str(tmp_path), "--experiment", "e", *tiny[4:]]
    first, second = series.train_all(parse_args(flags), trainer.train)["baseline"]
    assert (first["settings"]["seed"], second["settings"]["seed"]) == (42, 43)
    manifests = [json.loads((tmp_path / f"e/seed{seed}/manifest.json").read_text()) for seed in (42, 43)]
    assert manifests[0]["sha256"] != manifests[1]["sha256"]


def test_with_eta_0_the_weights_are_the_baseline_s(tmp_path, tiny):
    _, baseline = run(tmp_path, *tiny, name="baseline")
    for classifier in ("own", "shared"):
        flags = ("--mbj", "--mbj-eta", "0", "--mbj-classifier", classifier)
        _, off = run(tmp_path, *tiny, *flags, name=classifier)
        assert_same(baseline, off, ("state_dict",))


@pytest.mark.parametrize(
    "flags",
    [
        ["--clip-grad", "0.01", "--clip-mode", "value"],
        ["--clip-grad", "0.1", "--sampler", "square-root"],
        ["--opt", "lars", "--lr", "0.5", "--grad-accum-steps", "2"],
        ["--opt", "lookahead_adamw", "--amp", "--amp-dtype", "bfloat16", "--channels-last"],
        ["--model-ema", "--model-ema-decay", "0.7", "--mixup", "0.3", "--loss", "ce", "--smoothing", "0.1"],
        ["--sched", "plateau", "--patience-epochs", "0", "--eval-metric", "class_error", "--torchcompile", "aot_eager"],
        ["--loss", "balanced_softmax", "--sampler", "class-balanced", "--mbj-recipe", "balanced"],
        [
            *("--model", "deit_tiny_distilled_patch16_224", "--input-size", "1", "16", "16", "--mbj-start", "0"),
            *("--model-kwargs", "patch_size=4", "depth=1", "embed_dim=24", "num_heads=2", "img_size=16"),
        ],
    ],
    ids=lambda flags: flags[0] + flags[1],
)
def test_the_first_line_is_a_run_without_mbj_to_the_bit(tmp_path, tiny, flags):
    baseline, plain = run(tmp_path, *tiny, *flags, name="baseline")
    results, own = run(tmp_path, *tiny, *flags, "--mbj", name="own")
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
        ["--mbj-recipe", "balanced", "--smoothing", "0"],
        ["--mixup", "0.5", "--cutmix", "0.5", "--smoothing", "0.1"],
        ["--bce-loss", "--smoothing", "0.1", "--grad-accum-steps", "2", "--clip-grad", "1.0"],
        ["--model-ema", "--model-ema-decay", "0.5", "--channels-last", "--amp", "--amp-dtype", "bfloat16"],
        ["--loss", "balanced_softmax", "--smoothing", "0"],
        ["--torchcompile", "aot_eager", "--imbalance-ratio", "3", "-b", "4"],
    ],
    ids=lambda flags: flags[0],
)
def test_flags_in_concert(tmp_path, image_folder, flags):
    _, checkpoint = run(tmp_path, *folder_flags(image_folder), "--mbj", *flags)
    assert checkpoint["epoch"] == 2
    assert (checkpoint["task_state"]["mbj"]["feature.bank.slot_labels"] >= 0).sum() > 10


@pytest.mark.parametrize("workers", ["0", "1"])
def test_killed_and_resumed_it_is_the_run_that_was_never_stopped(tmp_path, image_folder, workers):
    flags = [*folder_flags(image_folder), "-j", workers, "--mbj", "--epochs", "5", "--aa", "rand-m5", "--mixup", "0.2"]
    _, whole = run(tmp_path, *flags, name="whole")
    command = [sys.executable, str(TOOL), *flags, "--output", str(tmp_path), "--experiment", "cut"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    last, deadline = tmp_path / "cut" / "last.pth.tar", time.monotonic() + 120
    while not last.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = load(last)["epoch"]
    assert reached < 4, "the run ended before it could be killed"
    _, resumed = run(tmp_path, *flags, "--resume", str(last), name="cut")
    assert_same(whole, resumed)
    assert (tmp_path / "whole/summary.csv").read_text() == (tmp_path / "cut/summary.csv").read_text()


def test_deferred_weights_resume(tmp_path, tiny):
    _, whole = run(tmp_path, *tiny, "--loss", "benchmarks.rivals.ldam:LDAMLoss", name="whole")
    _, half = run(tmp_path, *tiny, "--loss", "benchmarks.rivals.ldam:LDAMLoss", "--epochs", "2", name="half")
    assert 0 < half["batch_loss"]["step"] < whole["batch_loss"]["step"]
    last = str(tmp_path / "half/last.pth.tar")
    _, resumed = run(tmp_path, *tiny, "--loss", "benchmarks.rivals.ldam:LDAMLoss", "--resume", last, name="half")
    assert_same(whole, resumed, ("state_dict", "optimizer", "batch_loss"))
    assert "--loss benchmarks.rivals.ldam:LDAMLoss, this command has ce" in fails(*tiny, "--resume", last)


def test_torchrun(tmp_path, image_folder):
    """The command on two ranks; what they compute is in test_two_ranks.py."""
    flags = [*folder_flags(image_folder), "--mbj", "--output", str(tmp_path), "--experiment", "two"]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(TOOL),
        *flags,
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("error, %") == 1
    assert (load(tmp_path / "two/last.pth.tar")["task_state"]["mbj"]["feature.bank.slot_labels"] >= 0).sum() > 10


def test_checkpoints_load_in_stock_timm(tmp_path, image_folder):
    flags = ["--model", "resnet18", "--model-kwargs", "--epochs", "1", "--mbj-start", "0"]
    _, checkpoint = run(tmp_path, *folder_flags(image_folder), *flags, "--mbj")
    code = (
        "import sys, timm, torch;"
        "model = timm.create_model('resnet18', num_classes=3, checkpoint_path=sys.argv[1]);"
        "assert not any(name.startswith('mbj_plugin') for name in sys.modules);"
        "torch.save(model.fc.weight.data, sys.argv[2])"
    )
    paths = [str(tmp_path / "run/last.pth.tar"), str(tmp_path / "weight.pt")]
    subprocess.run([sys.executable, "-c", code, *paths], check=True)
    assert torch.equal(torch.load(paths[1]), checkpoint["state_dict"]["fc.weight"])


def test_tar_files_stand_for_folders(tmp_path, image_folder):
    for split in ("train", "validation"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as tar:
            tar.add(image_folder / split, arcname=".")
    folder, _ = run(tmp_path, *folder_flags(image_folder), "--epochs", "1", "--mbj", name="folder")
    tars, _ = run(tmp_path, str(tmp_path), *folder_flags(image_folder)[1:], "--epochs", "1", "--mbj", name="tars")
    assert folder["class_counts"] == tars["class_counts"] == [24, 12, 6]
