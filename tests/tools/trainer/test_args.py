"""Flags: none does nothing without a word, none takes a value that breaks the run later, an error is one line."""

import logging
import re

import pytest

from mbj_plugin.tools.trainer.args import make_parser, parse_args


def refused(capsys, *argv):
    """The one line of what parse_args refuses, or argparse itself."""
    with pytest.raises((ValueError, SystemExit)) as error:
        parse_args(argv)
    text = capsys.readouterr().err.removesuffix("\n") if error.type is SystemExit else str(error.value)
    assert "\n" not in text and (error.type is ValueError or text.startswith("mbj train: "))
    return text


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--smoothing 1", "--smoothing .* 1.0"),
        ("--smoothing -0.1", "--smoothing .* -0.1"),
        ("--smoothing nan", "--smoothing .* nan"),
        ("--drop 1", "--drop"),
        ("--hflip 2", "--hflip"),
        ("--lr 0", "--lr"),
        ("--lr inf", "--lr .* inf"),
        ("--weight-decay -1", "--weight-decay"),
        ("--momentum 1", "--momentum"),
        ("-j -1", "--workers .* -1"),
        ("-j 100000", "--workers .* 100000"),
        ("-b 0", "--batch-size .* 0"),
        (f"--epochs {10**30}", f"--epochs .* {10**30}"),
        (f"--seeds {10**9}", "--seeds"),
        (f"--seed {2**32}", "--seed"),
        ("--seed -1", "--seed"),
        ("--grad-accum-steps 0", "--grad-accum-steps"),
        ("--mixup -0.5", "--mixup"),
        ("--model-ema-decay 1.1 --model-ema", "--model-ema-decay"),
        ("--crop-pad -1", "--crop-pad"),
        ("--crop-pad 100000", "--crop-pad .* 100000"),
        ("--img-size 99999", "--img-size .* 99999"),
        ("--input-size 1 8 99999", "--input-size .* 99999"),
        ("--std 0.5 0 0.5 --in-chans 3", "--std .* 0.0"),
        ("--val-fraction 1", "--val-fraction"),
        ("--scale 1 0.5 -c somewhere", "--scale .* 1.0 0.5"),
        ("--decay-milestones 5 3", "--decay-milestones .* 5 3"),
        ("--remode salt", "--remode.*'salt'"),
        ("--eval-metric acc", "--eval-metric.*'acc'"),
        ("--opt-kwargs foo", "--opt-kwargs.*'foo'"),
        ("--mixup 0.2 -b 33", "--batch-size .* 33"),
        ("--in-chans 2", "--in-chans 2 and --input-size 1 8 8"),
        ("--in-chans 2 --dataset torch/cifar10", "2 channels.*3 .RGB.*--in-chans"),
        ("--input-img-mode LA", "1 channels.*2 .LA."),
        ("--input-img-mode colour", "--input-img-mode colour"),
        ("--dataset torch/cifar10 --mean 0.5 0.5", "--mean .*0.5 0.5"),
        ("--crop-pad 1 --scale 0.5 1", "--crop-pad .*--scale"),
        ("--crop-pad 1 --no-aug", "--crop-pad .*--no-aug"),
        ("folder -c digits", "sklearn/digits .*folder"),
        ("-c base_cifar_lt", "'base_cifar_lt'"),
        ("--mbj-etaa 3", "--mbj-etaa, did you mean --mbj-eta"),
        ("--split-bn", "--split-bn"),
        ("--epochs ten", "--epochs.*'ten'"),
        ("--lr", "--lr: expected"),
        ("--mbj --mbj-norm typo", "--mbj-norm.*'typo'"),
    ],
    ids=lambda value: value[:40],
)
def test_a_value_that_cannot_be(flags, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "somewhere").write_text("model: resnet18")
    assert re.search(named, refused(capsys, *flags.split()))


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


def test_help_explains_every_flag():
    text = re.sub(r"\s+", " ", make_parser().format_help())
    for action in make_parser()._actions:
        assert action.help, action.dest
    assert "label smoothing (default: 0.1, and 0 with" in text
    assert "epochs (default: 300)" in text
