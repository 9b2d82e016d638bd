"""What train_timm refuses: one line that names the value and the fix."""

import re

import pytest
from PIL import Image
from test_train import QUICK, fails, run


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["nowhere"], "data folder nowhere does not exist"),
        (["--dataset", "torch/cifar10"], "give --data-dir"),
        (["--dataset", "torch/cifar99", "--data-dir", "."], "cannot read the train split of torch/cifar99"),
        (["--dataset", "torch/cifar10", "--data-dir", "."], "cannot read the train split of torch/cifar10"),
        (["--imbalance-ratio", "0.5"], "--imbalance-ratio.*0.5"),
        (["--imbalance-ratio", "1000"], "imbalance ratio 1000"),
        (["--num-classes", "5"], "label 9 is out of range"),
        (["--num-classes", "12"], "2 of 12 classes have no training images"),
        (["--mbj", "--mbj-size", "0"], "--mbj-size must be a whole number.* from 1 .*, got 0"),
        (["--mbj", "--mbj-recipe", "balanced", "--mbj-classifier", "shared"], "classifier_loss.*classifier 'own'"),
        (["--mbj", "--mbj-eta", "-1"], "eta.*-1"),
        (["--mbj", "--mbj-start", "100"], "epoch 100, past the end of the run of 60 epochs"),
        (["--mbj", "--mbj-start", "soon"], "start must be.*'soon'"),
        (["--mbj", "--mbj-momentum", "0.5"], "momentum 0.5"),
        (["--dataset", "cifar10"], "unknown data set 'cifar10'.*torch/cifar10"),
        (["--model-kwargs", "foo=1"], "--model resnet32_cifar.*foo"),
        (["--opt", "foo"], "ptimizer.*foo"),
        (["--opt-kwargs", "foo=1"], "--opt momentum.*foo"),
        (["--device", "foo"], "--device foo"),
        (["--batch-size", "4000"], "do not fill one batch"),
        (["--resume", "missing.pth.tar"], "no checkpoint at missing.pth.tar"),
        (["--compare", "--resume", "x"], "--resume goes on with one run"),
        (["--seeds", "2", "--resume", "x"], "--resume goes on with one run"),
        (["--mbj", "--loss", "benchmarks.rivals.ldam:LDAMLoss"], "gives CosineLinear"),
        (["--loss", "focall"], "unknown loss 'focall'"),
        (["--loss", "math:NoClass"], "math:NoClass"),
        (["--loss", "os:path"], "os:path must be a class"),
        (["--crop-pad", "4", "--aa", "nope"], "check --aa nope"),
        (["--mbj-class-counts", "missing.json"], "cannot read the class counts missing.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert re.search(message, fails(*flags))


def test_bad_folders(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    assert "Found 0 images" in fails(str(tmp_path))
    one = tmp_path / "one" / "train" / "only"
    one.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(one / "a.png")
    flags = (str(tmp_path / "one"), "--model", "resnet18")
    assert "has no folder (or tar file) 'validation', it holds train" in fails(*flags)
    assert "1 class: a classifier needs two or more" in fails(*flags, "--val-split", "train")
    other = tmp_path / "one" / "validation" / "other"
    other.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(other / "a.png")
    assert "class 'only' has the number 0 in training and no images in evaluation" in fails(*flags)


def test_no_run_goes_into_the_folders_of_the_images(image_folder):
    data = image_folder
    for output, name in ((data.parent, data.name), (data / "train", "run"), (data / "train" / "class0", "run")):
        said = fails(str(data), "--output", str(output), "--experiment", name)
        assert "is a folder of the images: set another --output" in said


def test_unwritable_output(tmp_path, tiny):
    (tmp_path / "file").write_text("")
    assert "cannot write" in fails(*tiny, "--output", str(tmp_path / "file"))


def test_bad_checkpoints(tmp_path):
    run(tmp_path, *QUICK, "--mbj")
    path = tmp_path / "run/last.pth.tar"
    resume = ["--mbj", *QUICK, "--resume", str(path)]
    assert "--model-kwargs" in fails(*resume, "--model-kwargs", "depth=14")
    for flag, value in (("--mbj-size", "9"), ("--mbj-memory", "prototype"), ("--opt", "adamw"), ("--subset-seed", "1")):
        assert flag in fails(*resume, flag, value)
    path.write_bytes(path.read_bytes()[:-5000])
    assert "cut short" in fails(*resume)


def test_a_run_that_fails_leaves_no_folder(tmp_path, tiny):
    fails(*tiny, "--mbj", "--mbj-start", "100", "--output", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
