"""Diagnostics of timm runs: what is written, and that a resume goes on with it."""

import contextlib
import csv
import sys
import types

import pytest
import timm
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from mbj_plugin.diagnostics import memory_report
from mbj_plugin.timm import MBJLoss
from mbj_plugin.tools.trainer import series
from mbj_plugin.tools.trainer import train as trainer
from mbj_plugin.tools.trainer.args import parse_args


def run(tmp_path, *argv, name="run"):
    trainer.train(parse_args([*argv, "--output", str(tmp_path), "--experiment", name]))
    return torch.load(tmp_path / name / "last.pth.tar", weights_only=False)


def summary(folder):
    return list(csv.DictReader((folder / "summary.csv").open()))


def folder_flags(image_folder):
    return [
        *(str(image_folder), "--model", "resnet32_cifar", "--model-kwargs", "depth=8", "width=4", "-b", "6", "-j", "0"),
        *("--input-size", "3", "16", "16", "--epochs", "3", "--warmup-epochs", "0", "--lr", "0.02", "--no-progress"),
        *("--sched", "multistep", "--decay-milestones", "1", "--mbj-norm", "max", "--aa", "rand-m5", "--reprob", "0.3"),
    ]


def test_what_a_run_writes(tmp_path, image_folder):
    checkpoint = run(tmp_path, *folder_flags(image_folder), "--mbj")
    columns = summary(tmp_path / "run")
    assert [row["epoch"] for row in columns] == ["0", "1", "2"]
    loss = MBJLoss([24, 12, 6]).bind(timm.create_model("resnet32_cifar", depth=8, width=4, num_classes=3))
    loss.memories.load_state_dict(checkpoint["task_state"]["mbj"])
    for name, value in memory_report(loss.memories["feature"].bank, [24, 12, 6]).items():
        assert float(columns[-1][f"train_mbj/feature/{name}"]) == pytest.approx(value, nan_ok=True), name
    last = columns[-1]
    assert float(last["lr"]) == pytest.approx(0.002)
    assert float(last["eval_tail_error"]) == pytest.approx(tail_error(tmp_path / "run/last.pth.tar", image_folder))


def test_a_resumed_run_writes_what_the_whole_one_wrote(tmp_path, image_folder):
    flags = [*folder_flags(image_folder), "--mbj"]
    run(tmp_path, *flags, "--epochs", "4", name="whole")
    run(tmp_path, *flags, "--epochs", "3", name="cut")
    (tmp_path / "cut/checkpoint-1.pth.tar").rename(tmp_path / "cut/half.pth.tar")  # a kill in the third epoch
    run(tmp_path, *flags, "--epochs", "4", "--resume", str(tmp_path / "cut/half.pth.tar"), name="cut")
    assert len(summary(tmp_path / "cut")) == 4
    assert (tmp_path / "whole/summary.csv").read_text() == (tmp_path / "cut/summary.csv").read_text()


def tail_error(checkpoint, image_folder):
    """Of the classes 1 and 2 of three, image by image."""
    model = timm.create_model("resnet32_cifar", num_classes=3, depth=8, width=4, checkpoint_path=str(checkpoint))
    mean, std = (torch.tensor(model.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
    wrong = []
    for path in image_folder.glob("validation/class[12]/*.png"):
        image = (pil_to_tensor(Image.open(path)) / 255 - mean) / std
        with torch.no_grad():
            wrong.append(f"class{int(model.eval()(image[None]).argmax())}" != path.parent.name)
    assert len(wrong) == 12
    return 100 * sum(wrong) / len(wrong)


class FakeWandb(types.ModuleType):
    """Weights & Biases, as far as it is called here: which run got which rows."""

    def __init__(self, own=None):
        super().__init__("wandb")
        self.run, self.logged = own, {} if own is None else {own: []}

    @contextlib.contextmanager
    def init(self, project, name, config):
        self.run = name
        self.logged[name] = []
        yield
        self.run = None

    def log(self, row):
        self.logged[self.run].append(row)


@pytest.fixture
def use_wandb(monkeypatch):
    def use(wandb):
        monkeypatch.setitem(sys.modules, "wandb", wandb)
        monkeypatch.setattr("timm.utils.summary.wandb", wandb, raising=False)
        return wandb

    return use


def test_weights_and_biases_get_the_same_columns(tmp_path, image_folder, use_wandb):
    wandb = use_wandb(FakeWandb("the caller's"))
    run(tmp_path, *folder_flags(image_folder), "--mbj", "--log-wandb")
    logged = wandb.logged["the caller's"]
    assert [row["epoch"] for row in logged] == [0, 1, 2]
    assert logged[-1]["train_mbj/feature/fill"] == float(summary(tmp_path / "run")[-1]["train_mbj/feature/fill"])
    assert wandb.run == "the caller's"


def test_weights_and_biases_keep_runs_apart(tmp_path, image_folder, use_wandb):
    wandb = use_wandb(FakeWandb())
    flags = [
        *folder_flags(image_folder),
        "--mbj",
        "--mbj-classifier",
        "shared",
        "--compare",
        "--log-wandb",
        "--output",
        str(tmp_path),
    ]
    series.train_all(parse_args([*flags, "--experiment", "e"]), trainer.train)
    assert {name: len(logged) for name, logged in wandb.logged.items()} == {"e/mbj": 3, "e/baseline": 3}
    assert wandb.run is None


def test_weights_and_biases_that_are_missing_stop_before_training(tmp_path, image_folder, use_wandb, monkeypatch):
    use_wandb(None)  # what Python takes for a module that cannot be imported
    monkeypatch.delattr(trainer, "train_one_epoch")
    with pytest.raises(ValueError, match="pip install wandb"):
        run(tmp_path, *folder_flags(image_folder), "--log-wandb")
