"""The pages for users of timm and of the core: what they tell to type works, on tiny data."""

import re
import shlex

import numpy as np
import pytest
import torch
from page_runner import DOCS, run_page
from PIL import Image

import mbj_plugin
from mbj_plugin.tools import adjust, hub, report
from mbj_plugin.tools.trainer import train
from mbj_plugin.tools.trainer.args import make_parser, parse_args

# What comes last counts. The page's own test runs the models too (tests/tools/report).
TINY = ["--model", "test_resnet", "--input-size", "3", "16", "16", "--epochs", "2", "--warmup-epochs", "0", "-b", "6"]
TINY += ["-j", "0", "--lr", "0.02", "--no-progress"]
FRUIT = {"apple": 24, "cherry": 12, "fig": 8, "pear": 6, "quince": 5}
PRETRAINED = ["-c", "finetune"]  # published weights, which a test has not


def run_training(words, *more):
    train.main([*(word for word in words if word not in PRETRAINED), *TINY, *more])


COMMANDS = {
    "mbj train": run_training,
    "mbj adjust": adjust.main,
    "mbj report": lambda words: report.main([*words, "--no-model"]),
    "mbj hub": hub.main,
}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder DATA in the working directory: five classes of images to train on, and images to evaluate on."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for light, (name, count) in enumerate(FRUIT.items()):
        folder = tmp_path / "DATA/train" / name
        folder.mkdir(parents=True)
        for i in range(count):
            pixels = rng.normal(60 + 30 * light, 30, (16, 16, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{i:04d}.png")
        (tmp_path / "DATA/validation" / name).mkdir(parents=True)
        for image in sorted(folder.iterdir())[:4]:
            image.rename(tmp_path / "DATA/validation" / name / image.name)
    return tmp_path / "DATA"


def test_own_images(data, capsys):
    names = run_page("own-images.md", COMMANDS)
    assert capsys.readouterr().out.splitlines()[-1] == list(FRUIT)[names["answer"]]
    assert (data.parent / "output/train/mine/report/report.html").is_file()


def test_does_it_help(data, capsys):
    run_page("does-it-help.md", COMMANDS | {"mbj train": lambda words: run_training(words, "--seeds", "2")})
    printed = capsys.readouterr().out
    assert "seeds" in printed and "class-mean" in printed


def test_which_method(data, capsys):
    run_page("which-method.md", COMMANDS)
    assert "adjusted" in capsys.readouterr().out


def test_own_loop(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_page("own-loop.md", {})
    memory = names["memory"]
    assert (memory.bank.slot_labels >= 0).any() and names["prototypes"].grad.abs().sum() > 0
    assert not torch.equal(names["classifier"].weight, names["memory_classifier"].weight)
    saved = torch.load("checkpoint.pt")
    assert (saved["memory"]["bank.slot_labels"] >= 0).sum() > 5
    assert saved["memory"]["step"] == 10 * len(names["loader"])


@pytest.mark.parametrize(
    ("recipe", "title", "but"),
    [("cifar10_lt100", "CIFAR: ", ["imbalance_ratio"]), ("inat18", "iNaturalist18: ", ["batch_size"])],
)
def test_the_recipes_of_the_symbols_page_are_those_of_the_configs(recipe, title, but):
    table = (DOCS / "symbols.md").read_text().split(f"\n{title}")[1].split("\n\n")[1]
    flags = [word for code in re.findall(r"`(-[^`]*)`", table) for word in shlex.split(code)]
    flags = [word for word in flags if word not in ("-c", recipe)]
    if recipe == "cifar10_lt100":
        flags.insert(flags.index("--imbalance-ratio") + 1, "100")
    said = vars(make_parser().parse_args(flags))
    config = vars(parse_args(["-c", recipe]))
    defaults = vars(make_parser().parse_args([]))
    told = {name for name in said if said[name] != defaults[name]}
    assert len(told) >= 6
    assert {name: config[name] for name in told.difference(but)} == {name: said[name] for name in told.difference(but)}


def test_the_symbols_page_names_settings_flags_and_functions_that_there_are():
    page = (DOCS / "symbols.md").read_text()
    flags = set(re.findall(r"`(--[a-z-]*[a-z])\b", page))
    assert len(flags) > 10 and flags <= make_parser()._option_string_actions.keys()
    rows = [[cell.strip(" `") for cell in line.split("|")] for line in page.splitlines() if line.startswith("| ")]
    functions = {
        name for row in rows if len(row) == 6 for name in re.findall(r"\w+(?:_\w+)+|[A-Z]\w+(?:Loss|Bank)", row[4])
    }
    assert len(functions) >= 8 and functions <= {*mbj_plugin.__all__, "count_classes"}
