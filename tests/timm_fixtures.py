"""Fixtures of the tests for timm: a drawn image folder, finished runs on the digits, flags of a tiny run."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """An ImageFolder drawn here: 3 classes of bright, middle and dark noise, 24 / 12 / 6 training images."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, counts in (("train", (24, 12, 6)), ("validation", (6, 6, 6))):
        for label, count in enumerate(counts):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.normal(60 + 60 * label, 30, (16, 16, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def digit_runs(tmp_path_factory):
    """Folder of a baseline and an MBJ run on the digits, long enough to tell classes apart; not to be changed."""
    from mbj_plugin.tools.trainer import train

    root = tmp_path_factory.mktemp("runs")
    flags = ["--epochs", "6", "--decay-milestones", "4", "--warmup-epochs", "0", "--no-progress"]
    for name, more in {"baseline": [], "mbj": ["--mbj"]}.items():
        train.main(["--output", str(root), "--experiment", name, *more, *flags])
    return root


@pytest.fixture
def mbj_run(digit_runs, tmp_path):
    """A copy of the MBJ run, to be written to or broken."""
    return shutil.copytree(digit_runs / "mbj", tmp_path / "mbj")


@pytest.fixture
def tiny():
    """Flags of a run on the default digits that takes a second."""
    return ["--epochs", "3", "--decay-milestones", "1", "--warmup-epochs", "0", "--no-progress"]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
