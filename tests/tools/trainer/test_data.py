import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms_factory import transforms_imagenet_train
from torch.utils.data import Subset
from torchvision import transforms

from mbj_plugin import exponential_counts
from mbj_plugin.timm.counts import training_counts
from mbj_plugin.tools.trainer.args import parse_args
from mbj_plugin.tools.trainer.build import make_datasets
from mbj_plugin.tools.trainer.data import (
    Digits,
    LongTailSubset,
    cutout,
    innermost,
    make_dataset,
    pad_crop,
)


def test_digits_splits_are_disjoint_and_complete():
    parts = [Digits(split) for split in ("train", "validation", "test")]
    assert sum(len(part) for part in parts) == 1797
    seen = [image.tobytes() for part in parts for image in part.images]
    assert len(set(seen)) == 1797
    for part in parts:
        assert np.bincount(part.targets).min() >= 0.95 * len(part) / 10
    for mode in ("L", "RGB"):
        assert (Digits("train", mode)[3][0].size, Digits("train", mode)[3][0].mode) == ((8, 8), mode)
    with pytest.raises(ValueError, match="'dev'"):
        Digits("dev")


def test_long_tail_subset_and_its_manifest():
    whole = Digits("train")
    subset = LongTailSubset(whole, 20, seed=3)
    counts = np.bincount(subset.targets)
    assert counts.tolist() == exponential_counts(10, counts[0], 20).tolist()
    assert subset[5][1] == whole.targets[subset.indices[5]]
    manifest = subset.manifest()
    assert manifest["class_counts"] == counts.tolist()
    assert manifest["indices"] == subset.indices.tolist()
    assert manifest["sha256"] == LongTailSubset(whole, 20, seed=3).manifest()["sha256"]
    assert manifest["sha256"] != LongTailSubset(whole, 20, seed=4).manifest()["sha256"]
    subset.transform = len
    assert whole.transform is len


def cropped(image, **augmentations):
    settings = {"color_jitter": None, "mean": [0.3], "std": [0.4], "hflip": 0.0} | augmentations
    for seed in (torch.manual_seed, np.random.seed, random.seed):  # timm's policies draw by all three
        seed(1)
    return pad_crop(transforms_imagenet_train(8, **settings), (8, 8), 1)(image)


def test_pad_crop_equals_with_and_without_prefetching():
    image = Digits("train")[0][0]
    prefetched, normalised = cropped(image, hflip=0.5, use_prefetcher=True), cropped(image, hflip=0.5)
    assert prefetched.dtype == torch.uint8
    torch.testing.assert_close((prefetched.float() / 255 - 0.3) / 0.4, normalised)


def test_the_strong_recipe_is_flip_policy_black_square_then_normalisation():
    stock = transforms_imagenet_train(32, hflip=0.5, color_jitter=None, mean=(0.5,) * 3, std=(0.25,) * 3)
    made = pad_crop(stock, (32, 32), 4, policy=True)
    names = [getattr(t, "__name__", type(t).__name__) for t in made.transforms]
    order = ["Resize", "RandomCrop", "RandomHorizontalFlip", "AutoAugment", "cutout"]
    assert names[:5] == order and "Normalize" in names[5:]
    torch.manual_seed(0)
    black = [np.asarray(cutout(Image.new("RGB", (32, 32), "white"))) == 0 for _ in range(50)]
    rows, cols = ([int(square[..., 0].any(axis).sum()) for square in black] for axis in (1, 0))
    assert max(rows) == max(cols) == 16 and min(rows) >= 8 and min(cols) >= 8
    assert all(square.sum() == 3 * h * w for square, h, w in zip(black, rows, cols, strict=True))
    white = made(Image.new("RGB", (32, 32), "white"))
    assert white.min() == pytest.approx(-2)  # black, where a square of 0 behind the normalisation is grey


@pytest.mark.parametrize("size", [(8, 8), (24, 16)])
def test_pad_crop_is_the_recipe_of_cifar_for_images_of_any_size(size):
    image = Digits("train")[0][0].resize(size)
    torch.manual_seed(1)
    expected = transforms.PILToTensor()(transforms.RandomCrop(8, padding=1)(transforms.Resize((8, 8))(image)))
    assert torch.equal(cropped(image, use_prefetcher=True), expected)


@pytest.mark.parametrize(
    "augmentation",
    [{"vflip": 1.0}, {"hflip": 1.0}, {"color_jitter": 0.9}, {"auto_augment": "rand-m9"}, {"re_prob": 1.0}],
    ids=lambda augmentation: next(iter(augmentation)),
)
def test_all_other_augmentations_count_beside_pad_crop(augmentation):
    image = Digits("train", "RGB")[0][0]
    colours = {"mean": [0.3] * 3, "std": [0.4] * 3}
    assert not torch.equal(cropped(image, **colours), cropped(image, **colours, **augmentation))


def test_subset_of_a_subset_is_counted():
    half = Subset(Digits("train"), range(0, 1000, 2))
    assert len(LongTailSubset(half, 5)) > 100


def draw(folder, counts, ending=".png"):
    """A folder of images, one sub-folder per class, of which all pixels say class and number."""
    for label, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", (8, 8), (40 * label, i, 0)).save(folder / name / f"{i}{ending}")


def test_the_held_out_part_is_of_each_class_and_of_no_other_image(tmp_path):
    draw(tmp_path / "train", {"a": 20, "b": 10, "c": 2, "d": 1})

    def parts(*flags):
        args = parse_args([str(tmp_path), "--val-fraction", "0.2", *flags])
        sets = make_datasets(args)
        assert args.num_classes == 4 and training_counts(sets[0], 4).tolist() == [16, 8, 1, 1]
        assert np.bincount(sets[1].targets, minlength=4).tolist() == [4, 2, 1, 0]
        assert [len(part) for part in sets] == [26, 7]
        return [[innermost(part).filename(int(i)) for i in part.indices] for part in sets]

    train, held_out = parts()
    assert sorted(train + held_out) == sorted(str(p.relative_to(tmp_path / "train")) for p in tmp_path.rglob("*.png"))
    assert parts() == parts("--subset-seed", "0") == [train, held_out] != parts("--subset-seed", "1")


def read(folder, *flags):
    args = parse_args([str(folder), *flags])
    return make_dataset(args, "train", True, "RGB")


def test_images_of_all_endings_are_read_and_hidden_ones_are_no_class(tmp_path, caplog):
    for name, endings in {"a": (".png", ".WEBP", ".jpg"), "b": (".webp",), "c": (".gif", ".bmp", ".tiff")}.items():
        for ending in endings:
            draw(tmp_path / "train", {name: 2}, ending)
    whole = read(tmp_path)
    assert innermost(whole).reader.class_to_idx == {"a": 0, "b": 1, "c": 2} and not caplog.text
    assert training_counts(whole, 3).tolist() == [6, 2, 6]
    draw(tmp_path / "train", {".ipynb_checkpoints": 1, "b/.ipynb_checkpoints": 1, "a/._cache": 2})
    Image.new("RGB", (8, 8)).save(tmp_path / "train" / "c" / "._0.png")
    (tmp_path / "train" / ".DS_Store").write_text("")
    again = read(tmp_path)
    assert innermost(again).reader.samples == innermost(whole).reader.samples
    assert innermost(again).reader.class_to_idx == {"a": 0, "b": 1, "c": 2}
    assert "are left out: 5, such as" in caplog.text and ".DS_Store" not in caplog.text
    assert {again[i][0].getpixel((0, 0))[1] for i in range(len(again)) if again[i][1] == 1} == {0, 1}
    (tmp_path / "map.txt").write_text("c\nd\na\nb\n")
    mapped = innermost(read(tmp_path, "--class-map", str(tmp_path / "map.txt"))).reader
    assert [c for _, c in mapped.samples] == [2] * 6 + [3] * 2 + [0] * 6
    assert mapped.class_to_idx == {"c": 0, "d": 1, "a": 2, "b": 3}


def test_files_that_are_not_read_are_counted_once_by_their_ending(tmp_path, caplog):
    draw(tmp_path / "train", {"a": 5, "b": 5})
    for i in range(3):
        (tmp_path / "train" / "a" / f"{i}.heic").write_text("")
    (tmp_path / "train" / "README").write_text("")
    (tmp_path / "train" / "raw").mkdir()
    (tmp_path / "train" / "raw" / "0.heic").write_text("")
    make_datasets(parse_args([str(tmp_path), "--val-fraction", "0.4"]))
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == 1 and "5 (4 .heic, 1 without ending)" in warned[0]
    assert "No file is read in raw:" in warned[0]
    draw(tmp_path / "validation", {"a": 1, "b": 1, "raw": 1})
    with pytest.raises(ValueError, match="class 'raw' has no images in training and the number 2 in evaluation"):
        make_datasets(parse_args([str(tmp_path)]))


def test_a_folder_of_hidden_images_alone(tmp_path):
    draw(tmp_path / "train", {".a": 1, ".b": 1})
    with pytest.raises(ValueError, match="no images but hidden ones"):
        read(tmp_path)
