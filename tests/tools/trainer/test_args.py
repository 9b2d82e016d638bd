"""Flags: none does nothing without a word, none takes a value that breaks the run later, an error is one line."""

import logging
import re

import pytest

from mbj_plugin.tools.trainer.args import make_parser, parse_args
from mbj_plugin.tools.trainer.flags import TRAIN_PY
from mbj_plugin.tools.trainer.ranges import RANGES


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--smoothing 1.5", "--smoothing must be at least 0 and below 1, got 1.5"),
        ("--smoothing -0.1", "--smoothing.*got -0.1"),
        ("--smoothing nan", "--smoothing.*got nan"),
        ("--drop 1", "--drop must be at least 0 and below 1"),
        ("--hflip 2", "--hflip must be between 0 and 1"),
        ("--lr 0", "--lr must be above 0"),
        ("--lr inf", "--lr must be above 0, got inf"),
        ("--weight-decay -1", "--weight-decay must be 0 or more"),
        ("--momentum 1", "--momentum.*below 1"),
        ("--workers -1", "--workers must be from 0 to 1024, got -1"),
        ("-j 100000", "--workers.*got 100000"),
        ("--batch-size 0", "--batch-size must be 1 or more"),
        ("--grad-accum-steps 0", "--grad-accum-steps must be 1 or more"),
        ("--mixup -0.5", "--mixup must be 0 or more"),
        ("--model-ema-decay 1.1 --model-ema", "--model-ema-decay must be between 0 and 1"),
        ("--crop-pad -1", "--crop-pad must be from 0 to 1024"),
        ("--crop-pad 100000", "--crop-pad.*got 100000"),
        ("--img-size 99999", "--img-size must be from 1 to 8192, got 99999"),
        ("--input-size 1 8 99999", "--input-size.*got 1 8 99999"),
        ("--std 0.5 0 0.5 --in-chans 3", "--std must be above 0, got 0.5 0.0 0.5"),
        ("--scale 1 0.5 -c somewhere", "--scale takes the lower and the upper bound, got 1.0 0.5"),
        ("--decay-milestones 5 3", "--decay-milestones must grow, got 5 3"),
        ("--remode salt", "--remode must be one of.*'salt'"),
        ("--in-chans 2", "--in-chans 2 and --input-size 1 8 8 contradict"),
        ("--in-chans 2 --dataset torch/cifar10", "takes 2 channels.*images have 3 .RGB.*--in-chans 3 or 1"),
        ("--input-img-mode LA", "takes 1 channels.*images have 2 .LA."),
        ("--input-img-mode colour", "--input-img-mode colour: Pillow knows no such mode"),
        ("--dataset torch/cifar10 --mean 0.5 0.5", "--mean takes one number, or one for each of 3 channels"),
        ("--crop-pad 1 --scale 0.5 1", "--crop-pad takes the place.*--scale"),
        ("--crop-pad 1 --no-aug", "--crop-pad takes the place.*--no-aug"),
        ("--torchcompile --torchscript", "exclude each other"),
        ("folder -c digits", "sklearn/digits comes with scikit-learn.*folder"),
        ("-c base_cifar_lt", "no config 'base_cifar_lt'"),
    ],
    ids=lambda value: value,
)
def test_a_value_that_cannot_be(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "somewhere").write_text("model: resnet18")
    with pytest.raises(ValueError, match=message) as error:
        parse_args(flags.split())
    assert "\n" not in str(error.value)


def test_every_number_has_a_range():
    numbers = {a.dest for a in make_parser()._actions if a.type in (int, float)}
    free = {"local_rank", "imbalance_ratio", "mean", "head_init_bias"}  # checked elsewhere, or any number
    free |= {name for name in numbers if name.startswith("mbj_")}
    assert numbers - free == {name for names in RANGES.values() for name in names} & numbers
    assert numbers - free <= {name for names in RANGES.values() for name in names}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--mbj-eta 3", "--mbj-eta does nothing without --mbj"),
        ("--mbj-start 0", "--mbj-start does nothing without --mbj"),
        ("--amp-dtype bfloat16", "--amp-dtype does nothing without --amp"),
        ("--model-ema-decay 0.9", "--model-ema-decay does nothing without --model-ema"),
        ("--mixup-prob 0.5", "--mixup-prob does nothing without --mixup or --cutmix or --cutmix-minmax"),
        ("--clip-mode agc", "--clip-mode does nothing without --clip-grad"),
        ("--bce-loss --smoothing 0", "--bce-loss does nothing without --smoothing"),
    ],
)
def test_a_flag_that_does_nothing_is_said(flags, said, caplog):
    caplog.set_level(logging.INFO, "mbj_plugin")
    parse_args(flags.split())
    assert said in caplog.text


def test_flags_that_count_are_not_said(caplog):
    caplog.set_level(logging.INFO, "mbj_plugin")
    parse_args(
        ["--mbj-eta", "3", "--compare", "--amp", "--amp-dtype", "bfloat16", "--mixup", "0.2", "--mixup-prob", "0.5"]
    )
    parse_args(["--loss", "module:Class", "--mbj-start", "0"])
    parse_args(["-c", "cifar10_lt100"])  # holds settings of MBJ for those who add --mbj
    assert not caplog.records


def test_losses_of_hard_labels_take_no_smoothing_unless_told(tmp_path):
    (tmp_path / "c.yaml").write_text("dataset: torch/cifar10\nnum_classes: 10\n")
    config = ["-c", str(tmp_path / "c.yaml")]
    assert parse_args(config).smoothing == 0.1
    assert parse_args([*config, "--loss", "focal"]).smoothing == 0
    args = parse_args([*config, "--mbj", "--mbj-recipe", "balanced"])
    assert (args.mbj_classifier_loss, args.smoothing) == ("balanced_softmax", 0)
    assert parse_args([*config, "--loss", "focal", "--smoothing", "0.2"]).smoothing == 0.2


def test_colour_jitter_beside_crop_pad_is_off_unless_given(tmp_path):
    (tmp_path / "c.yaml").write_text("dataset: torch/cifar10\ncrop_pad: 4\n")
    config = ["-c", str(tmp_path / "c.yaml")]
    assert parse_args(config).color_jitter == 0
    assert parse_args([*config, "--color-jitter", "0.3"]).color_jitter == 0.3


def refused(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        parse_args(argv)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("train_timm: error: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize("flag", ["--split-bn", "--kd-model-name", "--model-dtype", "--aug-splits", "--val-interval"])
def test_a_flag_of_train_py_alone_names_its_door(flag, capsys):
    assert "-m mbj_plugin.timm.launch train.py ... " + flag in refused(capsys, flag, "x")


def test_a_wrong_flag_is_one_line_with_the_nearest_one(capsys):
    assert "there is no flag --mbj-etaa, did you mean --mbj-eta?" in refused(capsys, "--mbj-etaa", "3")
    assert "invalid int value: 'ten'" in refused(capsys, "--epochs", "ten")
    assert "invalid choice: 'typo'" in refused(capsys, "--mbj", "--mbj-norm", "typo")
    assert "expected one argument" in refused(capsys, "--lr")


def test_help_explains_every_flag():
    text = re.sub(r"\s+", " ", make_parser().format_help())
    for action in make_parser()._actions:
        assert action.help, action.dest
    assert "label smoothing; 0 for a --loss of hard labels, unless given (default: 0.1)" in text
    assert "epochs (default: 300)" in text


def test_no_flag_is_ours_and_train_py_s_alone():
    assert not TRAIN_PY & {action.dest for action in make_parser()._actions}
