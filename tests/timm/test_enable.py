"""timm's own train.py is in no package, so a script of the same shape stands in for it here."""

import csv
import importlib
import re
import runpy
import sys

import pytest
import timm
import torch
from timm.task import ClassificationTask, LogitDistillationTask

from mbj_plugin.timm import launch
from tests.in_fork import in_fork

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
                                batch_size=8, num_workers=0, use_prefetcher=True, device=torch.device("cpu"))
    loader_train = create_loader(dataset_train, input_size=(3, 16, 16), batch_size=8, is_training=True, num_workers=0,
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


ENABLE = ["--device-modules", "mbj_plugin.timm.enable"]


def enabled(call):
    importlib.import_module("mbj_plugin.timm.enable")
    return call()


def test_both_doors_train_mbj_and_eta_0_is_stock(host, image_folder, tmp_path):
    assert "mbj_plugin.timm.enable" not in sys.modules
    script = lambda: runpy.run_path(str(host), run_name="__main__")  # noqa: E731
    doors = {
        "stock": (script, [host], ""),
        "off": (script, [host, *ENABLE], "eta=0"),
        "on": (script, [host, *ENABLE], "eta=2,norm=max"),
        "launch": (launch.main, ["launch", host], "eta=2,norm=max"),
    }
    states, summaries = {}, {}
    for name, (call, argv, settings) in doors.items():
        done = in_fork(tmp_path, call, *argv, "--data-dir", image_folder, "--out", tmp_path / name, MBJ=settings)
        assert done.status == 0, done.err
        assert done.out.strip() == ("ClassificationTask" if name == "stock" else "EnabledTask")
        states[name] = torch.load(tmp_path / name)
        summaries[name] = list(csv.DictReader((tmp_path / f"{name}.csv").open()))
    weights = {name: state["state_dict"] for name, state in states.items()}
    for key, value in weights["stock"].items():
        assert torch.equal(value, weights["off"][key]), key
        assert torch.equal(weights["on"][key], weights["launch"][key]), key
    assert not torch.equal(weights["stock"]["fc.weight"], weights["on"]["fc.weight"])
    assert (states["on"]["task_state"]["mbj"]["feature.bank.slot_labels"] >= 0).any()
    assert summaries["stock"][0].keys() == {"epoch", "train_loss", "eval_top1", "lr"}
    last = summaries["on"][1]
    assert last == summaries["launch"][1] and float(last["train_loss_memory"]) > 0
    labels = states["on"]["task_state"]["mbj"]["feature.bank.slot_labels"][:-1]
    assert float(last["train_mbj/feature/fill"]) == (labels >= 0).float().mean()


def test_a_stock_run_that_goes_on_with_mbj_keeps_its_columns(tmp_path):
    def go_on():
        metrics, scores = {"loss": 1.0, "loss_memory": 2.0}, {"top1": 50.0}
        timm.utils.update_summary(1, metrics, scores, filename=str(tmp_path / "s.csv"), lr=0.05)

    stock = "epoch,train_loss,eval_top1,lr\n0,3.0,40.0,0.1\n"
    again = "epoch,train_loss,train_loss_memory,eval_top1,lr\n"  # timm < 1.0.31 writes a second header
    for header, row in ((stock, "1,1.0,50.0,0.05"), (stock + again, "1,1.0,2.0,50.0,0.05")):
        (tmp_path / "s.csv").write_text(header)
        done = in_fork(tmp_path, lambda: enabled(go_on))
        assert done.status == 0, done.err
        assert (tmp_path / "s.csv").read_text().splitlines()[-1] == row


def distil():
    LogitDistillationTask(timm.create_model("resnet18"), timm.create_model("resnet18"))


def in_another_script():
    ClassificationTask(timm.create_model("resnet18"), torch.nn.CrossEntropyLoss())


def test_mistakes(host, image_folder, tmp_path):
    one_line = r"train.py: error: .*{}.*\n"
    for call, argv, settings, said in (
        (lambda: enabled(None), [host], "etha=3", one_line.format("'etha=3'.*did you mean 'eta'")),
        (
            launch.main,
            ["launch", host, "--data-dir", image_folder],
            "class_counts=none",
            one_line.format("counts none"),
        ),
        (launch.main, ["launch", "nowhere.py"], "", r"usage: .*nowhere.py.*\n"),
        (lambda: enabled(distil), [host], "", "(?s).*leave out --kd-model-name.*"),
        (
            lambda: enabled(in_another_script),
            ["own.py"],
            "",
            r"(?s).*build MBJTask\(model, MBJLoss\(class_counts\)\).*",
        ),
    ):
        done = in_fork(tmp_path, call, *argv, MBJ=settings)
        said_by_us = "".join(line for line in done.err.splitlines(keepends=True) if "Warning" not in line)
        assert done.status == 1 and re.fullmatch(said, said_by_us), done.err
