"""Images that cannot be read: said, never taken for another class; an error where a class has no others."""

import logging
import shutil

import pytest
import torch
from plain_loop import MEAN, STD, new_model, normalised, read_images
from test_train import fails, folder_flags, run
from timm.data import create_dataset

from mbj_plugin.tools.trainer.images import ReadableImages


@pytest.fixture
def images(tmp_path, image_folder):
    return shutil.copytree(image_folder, tmp_path / "images")


def break_(folder, number=None, how="truncated"):
    """Break some images of a folder; their number."""
    broken = sorted(folder.glob("*.png"))[:number]
    for path in broken:
        path.write_bytes(path.read_bytes()[:60] if how == "truncated" else b"no image")
    return len(broken)


def read(images, split, training):
    dataset = create_dataset("", root=images / split, split=split)
    ours = ReadableImages(dataset.reader, "RGB", training)
    dataset.transform = ours.transform = lambda image: image.getpixel((0, 0))
    return dataset, ours


@pytest.mark.parametrize("how", ["truncated", "text"])
def test_in_training_another_image_of_the_class_stands_in(images, how, caplog):
    whole = [pixel_and_class[1] for pixel_and_class in read(images, "train", True)[0]]
    break_(images / "train" / "class2", 5, how)
    _, ours = read(images, "train", True)
    assert [label for _, label in (ours[i] for i in range(len(ours)))] == whole
    assert len({ours[i] for i in range(len(ours)) if ours[i][1] == 2}) == 1  # the one that is left
    assert "another of its class is taken" in caplog.text and caplog.text.count("Cannot read") == 5


@pytest.mark.parametrize("how", ["truncated", "text"])
def test_in_evaluation_it_is_left_out(images, how, caplog):
    break_(images / "validation" / "class0", 2, how)
    _, ours = read(images, "validation", False)
    labels = [ours[i][1] for i in range(len(ours))]
    assert labels == [-1] * 2 + [0] * 4 + [1] * 6 + [2] * 6
    assert "class0/0.png" in caplog.text.replace("\\", "/") and "it is left out" in caplog.text


def test_whole_images_are_timm_s(images):
    timm_s, ours = read(images, "train", True)
    assert [ours[i] for i in range(len(ours))] == [timm_s[i] for i in range(len(timm_s))]


@pytest.mark.parametrize("left", [0, 5])
def test_a_class_without_a_readable_image_is_refused(images, left):
    for path in sorted((images / "train" / "class2").glob("*.png"))[left + 1 :]:
        path.unlink()
    break_(images / "train" / "class2")
    assert "class 2 has no image that can be read" in fails(*folder_flags(images), "--output", str(images / "runs"))


def test_a_run_with_some_broken_images_reports_the_others_and_says_each_once(images, tmp_path):
    log = logging.FileHandler(tmp_path / "log")  # which the processes that load images share
    logging.getLogger("mbj_plugin").addHandler(log)
    broken = sorted((images / "validation" / "class0").glob("*.png"))[:2]
    break_(images / "validation" / "class0", 2)
    break_(images / "train" / "class0", 3, "text")
    flags = ["--mean", *[str(MEAN)] * 3, "--std", *[str(STD)] * 3, "--crop-pct", "1"]
    result, checkpoint = run(tmp_path, *folder_flags(images), *flags, "--epochs", "2", "-j", "1")
    logging.getLogger("mbj_plugin").removeHandler(log)
    model = new_model().eval()
    model.load_state_dict(checkpoint["state_dict"])
    for path in broken:
        path.unlink()
    pixels, labels = read_images(images / "validation")
    with torch.no_grad():
        wrong = model(normalised(pixels)).argmax(1) != labels
    assert len(labels) == 16 and result["errors"]["error"] == pytest.approx(100 * wrong.float().mean().item())
    per_class = [100 * wrong[labels == label].float().mean().item() for label in range(3)]
    assert result["per_class_error"] == pytest.approx(per_class)
    said = (tmp_path / "log").read_text()
    assert said.count("it is left out") == 2 and said.count("another of its class is taken") == 3
