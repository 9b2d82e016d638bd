"""timm's own train.py is in no package, so a script of the same shape stands in for it here."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HOST = """
import argparse, importlib, sys
import torch
from timm import utils
from timm.data import create_dataset, create_loader
from timm.models import create_model
from timm.task import ClassificationTask

parser = argparse.ArgumentParser()
parser.add_argument("--data-dir")
parser.add_argument("--out")
parser.add_argument("--device-modules", nargs="+")
parser.set_defaults(num_classes=3, grad_accum_steps=1, seed=3, epochs=2, sched="multistep", decay_milestones=[1],
                    warmup_epochs=0, lr=0.05, smoothing=0.0)


def main():
    args = parser.parse_args()
    for module in args.device_modules or []:
        importlib.import_module(module)
    utils.random_seed(args.seed, 0)
    model = create_model("resnet18", num_classes=args.num_classes)
    dataset_train = create_dataset("", root=args.data_dir, split="train")
    loader_eval = create_loader(create_dataset("", root=args.data_dir, split="validation"), input_size=(3, 16, 16),
                                batch_size=8, num_workers=1, use_prefetcher=True, device=torch.device("cpu"))
    loader_train = create_loader(dataset_train, input_size=(3, 16, 16), batch_size=8, is_training=True, num_workers=1,
                                 use_prefetcher=True, device=torch.device("cpu"))
    train_loss_fn = torch.nn.CrossEntropyLoss()
    task = ClassificationTask(model=model, criterion=train_loss_fn, device=torch.device("cpu"), verbose=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr)
    task.get_trainable_module().train()
    for epoch in range(args.epochs):
        for input, target in loader_train:
            optimizer.zero_grad()
            task(input, target)["loss"].backward()
            optimizer.step()
        train_metrics = {"loss": 1.0}
        utils.update_summary(epoch, train_metrics, {"top1": 50.0}, filename=args.out + ".csv", lr=0.05,
                             write_header=epoch == 0, log_wandb=False)
        assert train_metrics == {"loss": 1.0}
    print(type(task).__name__)
    torch.save(task.get_checkpoint_state(), args.out)


if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    path = tmp_path_factory.mktemp("host") / "train.py"
    path.write_text(HOST)
    return path


def run(command, settings=""):
    env = {**os.environ, "MBJ": settings, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, env=env)


def test_both_doors_train_mbj_and_eta_0_is_stock(host, image_folder, tmp_path):
    data = ["--data-dir", image_folder]
    doors = {
        "stock": ([host], ""),
        "off": ([host, "--device-modules", "mbj_plugin.timm.enable"], "eta=0"),
        "on": ([host, "--device-modules", "mbj_plugin.timm.enable"], "eta=2,norm=max"),
        "launch": (["-m", "mbj_plugin.timm.launch", host], "eta=2,norm=max,diagnostics=0"),
    }
    states, summaries, rows = {}, {}, {}
    for name, (command, settings) in doors.items():
        done = run([*command, *data, "--out", tmp_path / name], settings)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == ("ClassificationTask" if name == "stock" else "EnabledTask")
        states[name] = torch.load(tmp_path / name)
        summaries[name] = list(csv.DictReader((tmp_path / f"{name}.csv").open()))
        written = tmp_path / "diagnostics.jsonl"
        assert written.exists() == (name in ("off", "on"))
        rows[name] = [json.loads(line) for line in written.read_text().splitlines()] if written.exists() else []
        written.unlink(missing_ok=True)
    weights = {name: state["state_dict"] for name, state in states.items()}
    for key, value in weights["stock"].items():
        assert torch.equal(value, weights["off"][key]), key
        assert torch.equal(weights["on"][key], weights["launch"][key]), key
    assert not torch.equal(weights["stock"]["fc.weight"], weights["on"]["fc.weight"])
    assert (states["on"]["task_state"]["mbj"]["feature.bank.slot_labels"] >= 0).any()
    # Diagnostics: in their file, in the summary, and (launch) neither where they are off.
    assert [(row["step"], row["epoch"]) for row in rows["on"]] == [(5, 0), (10, 1)]
    assert summaries["launch"][0].keys() == summaries["stock"][0].keys() == {"epoch", "train_loss", "eval_top1", "lr"}
    last = summaries["on"][1]
    assert float(last["train_mbj/feature/fill"]) == rows["on"][1]["mbj/feature/fill"] > 0
    assert float(last["train_loss_memory"]) == rows["on"][1]["mbj/loss_memory"] > 0
    assert "train_mbj/probe_jitter_tail" in last


def test_a_stock_run_that_goes_on_with_mbj_keeps_its_columns(tmp_path):
    code = (
        "import sys; from timm import utils; import mbj_plugin.timm.enable;"
        "utils.update_summary(1, {'loss': 1.0, 'loss_memory': 2.0}, {'top1': 50.0}, filename=sys.argv[1], lr=0.05)"
    )
    stock = "epoch,train_loss,eval_top1,lr\n0,3.0,40.0,0.1\n"
    again = "epoch,train_loss,train_loss_memory,eval_top1,lr\n"  # timm < 1.0.31 writes a second header
    for header, row in ((stock, "1,1.0,50.0,0.05"), (stock + again, "1,1.0,2.0,50.0,0.05")):
        (tmp_path / "s.csv").write_text(header)
        done = run(["-c", code, tmp_path / "s.csv"])
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "s.csv").read_text().splitlines()[-1] == row


@pytest.mark.parametrize("door", [["--device-modules", "mbj_plugin.timm.enable"], []])
def test_a_wrong_setting_is_one_line(door, host, image_folder, tmp_path):
    command = [host, *door, "--data-dir", image_folder, "--out", tmp_path / "x"]
    command, text = (command, "etha=3") if door else (["-m", "mbj_plugin.timm.launch", *command], "class_counts=none")
    done = run(command, text)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if "Warning" not in line]
    assert re.fullmatch(r"train.py: error: .*('etha=3'.*did you mean 'eta'|class counts none).*", "\n".join(errors))


def test_a_script_of_another_shape_is_told_what_to_do():
    code = (
        "import timm, torch, mbj_plugin.timm.enable; from timm.task import ClassificationTask;"
        "ClassificationTask(timm.create_model('resnet18'), torch.nn.CrossEntropyLoss())"
    )
    done = run(["-c", code])
    assert "build MBJTask(model, MBJLoss(class_counts)) instead" in done.stderr


def test_distillation_is_refused():
    code = (
        "import timm, torch, mbj_plugin.timm.enable; from timm.task import LogitDistillationTask;"
        "LogitDistillationTask(timm.create_model('resnet18'), timm.create_model('resnet18'))"
    )
    assert "leave out --kd-model-name" in run(["-c", code]).stderr


def test_launch_without_a_script():
    done = run(["-m", "mbj_plugin.timm.launch", "nowhere.py"])
    assert done.returncode != 0
    assert "usage" in done.stderr
    assert "nowhere.py" in done.stderr
