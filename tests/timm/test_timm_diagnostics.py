"""Diagnostics of timm runs: what is written, that it changes nothing, and that a resume goes on with it."""

import contextlib
import csv
import json
import logging
import math
import sys
import threading
import types

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_dataset, create_loader
from torch.utils._pytree import tree_leaves
from torchvision.transforms.functional import pil_to_tensor

from mbj_plugin.diagnostics.memory_report import memory_report
from mbj_plugin.timm import MBJLoss
from mbj_plugin.timm.diagnostics import classifier_input, make_monitor
from mbj_plugin.timm.head import classifier_layers
from mbj_plugin.tools.trainer import series
from mbj_plugin.tools.trainer import train as trainer
from mbj_plugin.tools.trainer.args import parse_args


def run(tmp_path, *argv, name="run"):
    trainer.train(parse_args([*argv, "--output", str(tmp_path), "--experiment", name]))
    return torch.load(tmp_path / name / "last.pth.tar", weights_only=False)


def rows(folder):
    return [json.loads(line) for line in (folder / "diagnostics.jsonl").read_text().splitlines()]


def summary(folder):
    return list(csv.DictReader((folder / "summary.csv").open()))


def assert_same(a, b):
    for key in ("state_dict", "optimizer", "task_state", "rng_states"):
        pairs = list(zip(tree_leaves(a.get(key)), tree_leaves(b.get(key)), strict=True))
        assert pairs or key == "task_state"
        assert all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs), key


def folder_flags(image_folder):
    return [
        *(str(image_folder), "--model", "resnet32_cifar", "--model-kwargs", "depth=8", "width=4", "-b", "6", "-j", "0"),
        *("--input-size", "3", "16", "16", "--epochs", "3", "--warmup-epochs", "0", "--lr", "0.02", "--no-progress"),
        *("--sched", "multistep", "--decay-milestones", "1", "--mbj-norm", "max", "--aa", "rand-m5", "--reprob", "0.3"),
    ]


@pytest.mark.parametrize("flags", [["--mbj", "--mbj-memory", "both", "--drop", "0.2"], ["--mixup", "0.2"]])
def test_with_and_without_diagnostics_it_is_the_same_run(tmp_path, image_folder, flags):
    flags = [*folder_flags(image_folder), *flags]
    on, off = run(tmp_path, *flags, name="on"), run(tmp_path, *flags, "--no-mbj-diagnostics", name="off")
    assert_same(on, off)
    assert (tmp_path / "on/diagnostics.jsonl").exists()
    assert not (tmp_path / "off/diagnostics.jsonl").exists() and not list((tmp_path / "off").glob("events*"))
    both = zip(summary(tmp_path / "on"), summary(tmp_path / "off"), strict=True)
    assert all(one[key] == other[key] for one, other in both for key in other)


def test_what_a_run_writes(tmp_path, image_folder):
    threads = threading.active_count()
    checkpoint = run(tmp_path, *folder_flags(image_folder), "--mbj")
    assert threading.active_count() == threads  # that of the event file has ended
    written, columns = rows(tmp_path / "run"), summary(tmp_path / "run")
    assert [(row["step"], row["epoch"]) for row in written] == [(7, 0), (14, 1), (21, 2)]
    loss = MBJLoss([24, 12, 6]).bind(timm.create_model("resnet32_cifar", depth=8, width=4, num_classes=3))
    loss.memories.load_state_dict(checkpoint["task_state"]["mbj"])
    for name, value in memory_report(loss.memories["feature"].bank, [24, 12, 6]).items():
        assert written[-1].get(f"mbj/feature/{name}", math.nan) == pytest.approx(value, nan_ok=True), name
    for row, column in zip(written, columns, strict=True):
        assert row["mbj/loss_memory"] == pytest.approx(float(column["train_loss_memory"]), rel=1e-5)
        assert row["mbj/loss_batch"] == pytest.approx(float(column["train_loss"]), rel=1e-5)
        for name in {name for name in row if name.startswith("mbj/") and "loss_" not in name}:
            assert float(column[f"train_{name}"]) == row[name]
    assert "mbj/probe_jitter_tail" not in written[0] and columns[0]["train_mbj/probe_jitter_tail"] == "nan"
    assert written[-1]["mbj/probe_jitter_tail"] > 0
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    events = accumulator(str(tmp_path / "run"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set().union(*written) - {"step", "epoch"}
    assert [event.step for event in events.Scalars("mbj/feature/fill")] == [7, 14, 21]


def test_a_baseline_run_records_its_probe_images(tmp_path, image_folder):
    run(tmp_path, *folder_flags(image_folder))
    last = rows(tmp_path / "run")[-1]  # of three classes none is medium
    assert set(last) == {"step", "epoch", "mbj/loss_batch", "mbj/probe_jitter_head", "mbj/probe_jitter_tail"}
    assert "train_mbj/probe_jitter_medium" in summary(tmp_path / "run")[-1]


def test_a_resumed_run_writes_what_the_whole_one_wrote(tmp_path, image_folder):
    flags = [*folder_flags(image_folder), "--mbj"]
    run(tmp_path, *flags, "--epochs", "4", name="whole")
    run(tmp_path, *flags, "--epochs", "3", name="cut")
    (tmp_path / "cut/checkpoint-1.pth.tar").rename(tmp_path / "cut/half.pth.tar")  # a kill in the third epoch
    run(tmp_path, *flags, "--epochs", "4", "--resume", str(tmp_path / "cut/half.pth.tar"), name="cut")
    assert len(rows(tmp_path / "cut")) == 4 and rows(tmp_path / "whole") == rows(tmp_path / "cut")
    assert (tmp_path / "whole/summary.csv").read_text() == (tmp_path / "cut/summary.csv").read_text()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["--mbj", "--no-mbj-diagnostics"], ["--mbj"]),
        (["--mbj"], ["--mbj", "--no-mbj-diagnostics"]),
    ],
)
def test_resumed_with_another_choice_the_columns_stay(tmp_path, image_folder, first, second):
    flags = folder_flags(image_folder)
    run(tmp_path, *flags, *first, "--epochs", "1")
    run(tmp_path, *flags, *second, "--resume", str(tmp_path / "run" / "last.pth.tar"))
    lines = (tmp_path / "run" / "summary.csv").read_text().splitlines()
    assert len(lines) == 4 and len({line.count(",") for line in lines}) == 1
    assert [row["epoch"] for row in summary(tmp_path / "run")] == ["0", "1", "2"]
    last = summary(tmp_path / "run")[2]
    assert float(last["lr"]) == pytest.approx(0.002)
    assert float(last["eval_tail_error"]) == pytest.approx(tail_error(tmp_path / "run/last.pth.tar", image_folder))


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
    assert logged[-1]["train_mbj/feature/fill"] == rows(tmp_path / "run")[-1]["mbj/feature/fill"]
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


def loaders(image_folder, training=None):
    shared = {"input_size": (3, 16, 16), "batch_size": 4, "device": torch.device("cpu")}
    shared |= {"num_workers": 0, "persistent_workers": False}  # older torch refuses True without workers
    train_set = create_dataset("", root=str(image_folder), split="train") if training is None else training
    train = create_loader(train_set, is_training=True, **shared)
    return train, create_loader(create_dataset("", root=str(image_folder), split="validation"), **shared)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "lcnet_035"])
def test_features_are_the_classifier_s_input(name):
    size = {"img_size": 32} if "tiny" in name else {}
    model = timm.create_model(name, num_classes=3, drop_rate=0.5, **size)
    model.train()
    images = torch.randn(2, 3, 32, 32)
    layers = classifier_layers(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    features = classifier_input(model, layers, images)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training and not any(layer._forward_pre_hooks for layer in layers)
    model.eval()
    widths = [layer.weight[0].numel() for layer in layers]
    logits = [
        layer(part) if layer.weight.ndim == 2 else layer(part[..., None, None]).flatten(1)
        for layer, part in zip(layers, features.split(widths, dim=1), strict=True)
    ]
    torch.testing.assert_close(torch.stack(logits).mean(0), model(images))


def test_probe_images_are_the_training_images_without_augmentation(image_folder):
    train, evaluation = loaders(image_folder)
    model = timm.create_model("resnet32_cifar", depth=8, width=4, num_classes=3)
    seen = []
    model.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    transform = train.dataset.transform
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert make_monitor(model, torch.nn.CrossEntropyLoss(), [24, 12, 6], train, evaluation).probe is not None
    assert train.dataset.transform is transform and torch.equal(torch.get_rng_state(), state)
    train.dataset.transform = evaluation.dataset.transform
    everything, _ = zip(*(train.dataset[i] for i in range(len(train.dataset))), strict=True)
    everything = (torch.stack([torch.as_tensor(x) for x in everything]).float() - train.mean) / train.std
    for image in seen[0]:
        assert any(torch.allclose(image, other, atol=1e-5) for other in everything)


@pytest.mark.parametrize("why", ["no evaluation set", "a data set that streams", "a model without a classifier"])
def test_without_probe_images_one_line_says_so(image_folder, why, caplog):
    train, evaluation = loaders(image_folder)
    model = timm.create_model("resnet32_cifar", depth=8, width=4, num_classes=3)
    if why == "no evaluation set":
        evaluation = None
    if why == "a data set that streams":

        class Stream(torch.utils.data.IterableDataset):
            def __iter__(self):
                return iter(())

        train = types.SimpleNamespace(dataset=Stream())
    if why == "a model without a classifier":
        model = torch.nn.Linear(4, 3)
    with caplog.at_level(logging.INFO, "mbj_plugin"):
        monitor = make_monitor(model, torch.nn.CrossEntropyLoss(), [24, 12, 6], train, evaluation)
    assert monitor.probe is None and monitor.scalars() == {}
    assert len(caplog.messages) == 1 and "without probe images" in caplog.text
