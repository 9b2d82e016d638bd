"""The flags of train_timm: timm's own names and defaults, and ours for long tails and MBJ."""

from __future__ import annotations

import argparse
import logging
import sys
from argparse import SUPPRESS, BooleanOptionalAction, Namespace
from collections.abc import Sequence
from typing import Any

from PIL import ImageMode
from timm.utils import ParseKwargs

from mbj_plugin.batch_losses import LOSSES
from mbj_plugin.settings import RULES
from mbj_plugin.timm.settings import RECIPES, add_arguments, flag, from_args
from mbj_plugin.tools.parser import OneLineParser
from mbj_plugin.tools.trainer.build import channels, image_mode
from mbj_plugin.tools.trainer.config import as_argv, load_config
from mbj_plugin.tools.trainer.flags import FLAGS, SHORT

_logger = logging.getLogger("mbj_plugin")
# Without a data set the main job runs: MBJ on scikit-learn's digits.
DEFAULT_CONFIG = "digits"
# What MBJ alone reads. Its start is also that of a late phase of one's own loss.
MBJ_ONLY = [f"mbj_{name}" for name in RULES if name not in ("start", "class_counts")]
# What the crop of --crop-pad stands in for, or contradicts.
NOT_WITH_CROP_PAD = ("scale", "ratio", "train_crop_mode", "train_interpolation", "no_aug")
# Flags that do nothing without another one.
NEEDS: dict[str, tuple[str, ...]] = {
    "amp_dtype": ("amp",),
    "model_ema_decay": ("model_ema",),
    "model_ema_warmup": ("model_ema",),
    "bce_sum": ("bce_loss",),
    "bce_target_thresh": ("bce_loss",),
    "mixup_prob": ("mixup", "cutmix", "cutmix_minmax"),
    "mixup_switch_prob": ("mixup", "cutmix", "cutmix_minmax"),
    "mixup_mode": ("mixup", "cutmix", "cutmix_minmax"),
    "mixup_off_epoch": ("mixup", "cutmix", "cutmix_minmax"),
    "clip_mode": ("clip_grad",),
    "torchcompile_mode": ("torchcompile",),
    "wandb_project": ("log_wandb",),
    "subset_seed": ("imbalance_ratio", "val_fraction"),
    "pretrained_path": ("pretrained",),
    "remode": ("reprob",),
    "recount": ("reprob",),
}


def make_parser() -> argparse.ArgumentParser:
    """The parser of train_timm."""
    parser = OneLineParser(
        prog="mbj train",
        description="Train a timm classifier on long-tailed data, with Memory-based Jitter (--mbj) or without. Flags "
        "of timm's train.py mean the same here. Without a data set this trains on scikit-learn's digits.",
        epilog="example: mbj train DATA -c finetune --mbj, where DATA has folders train/CLASS and validation/CLASS",
    )
    parser.add_argument("data", nargs="?", metavar="DIR", help="data folder, as --data-dir")
    parser.add_argument(
        "-c", "--config", metavar="FILE", help="YAML file, or an installed config: finetune, inat18, cifar10_lt100 ..."
    )
    add_arguments(parser)
    for title, flags in FLAGS.items():
        group = parser.add_argument_group(title)
        for name, each in flags.items():
            each.add_to(group, [*([SHORT[name]] if name in SHORT else []), flag(name)])
    more = parser.add_argument_group("timm: more")
    for name, what in (("model", "model"), ("opt", "optimizer")):
        more.add_argument(
            f"--{name}-kwargs",
            nargs="*",
            default={},
            type=_pair,
            action=ParseKwargs,
            metavar="KEY=VALUE",
            help=f"more arguments of the {what}",
        )
    more.add_argument(
        "--torchcompile",
        nargs="?",
        const="inductor",
        metavar="BACKEND",
        help="compile the model (default backend: inductor)",
    )
    more.add_argument(
        "--local-rank", "--local_rank", type=int, default=0, help="rank on this machine, which torchrun sets"
    )
    more.add_argument(
        "--progress", action=BooleanOptionalAction, help="show a progress bar (default: if the output is a terminal)"
    )
    return parser


def _pair(text: str) -> str:
    if "=" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return text


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Arguments, in this order: timm's defaults, the config, the recipe of MBJ, the command line."""
    typed = list(sys.argv[1:] if argv is None else argv)
    parser = make_parser()
    args = parser.parse_args(typed)
    name = args.config or ("" if args.data or args.data_dir or args.dataset else DEFAULT_CONFIG)
    argv = as_argv(load_config(name), parser, f"config {name}") if name else []
    parser.prog = f"mbj train: config {name}"  # whose values are at fault
    parser.parse_args(argv)
    parser.prog = "mbj train"
    recipe = RECIPES[parser.parse_args(argv + typed).mbj_recipe]
    argv += [*as_argv({f"mbj_{name}": value for name, value in recipe.items()}, parser, "the recipe"), *typed]
    args, given = parser.parse_args(argv), _given(argv)
    hard_labels = args.loss != "ce" or ((args.mbj or args.compare) and args.mbj_classifier_loss is not None)
    if hard_labels and "smoothing" not in given:
        args.smoothing = 0.0
    if args.crop_pad is not None and "color_jitter" not in given:
        args.color_jitter = 0.0  # CIFAR's recipe has none; timm's default is ImageNet's
    args.data_dir = args.data_dir or args.data
    args.config = name
    args.prefetcher = not args.no_prefetcher
    for flags in FLAGS.values():
        for name, each in flags.items():
            each.check(name, getattr(args, name))
    if args.mbj or args.compare:  # what is recorded is what counts
        settings = from_args(args)
        args.mbj_eta, args.mbj_size, args.mbj_start = settings.eta, settings.size, settings.start
    _check_together(args, given)
    _check_channels(args)
    _warn(args, _given(typed))
    return args


def _given(argv: list[str]) -> set[str]:
    """Names of the arguments that are given."""
    parser = make_parser()
    for action in parser._actions:
        action.default = SUPPRESS
    return set(vars(parser.parse_args(argv)))


def _check_together(args: Namespace, given: set[str]) -> None:
    """Raise ValueError for flags that contradict each other; ``given`` are those of the command line and the config."""
    for name in ("scale", "ratio", "cutmix_minmax"):
        value = getattr(args, name)
        if value is not None and (len(value) != 2 or value[0] > value[1]):
            raise ValueError(f"{flag(name)} takes the lower and the upper bound, got {_text(value)}")
    if args.decay_milestones != sorted(args.decay_milestones):
        raise ValueError(f"--decay-milestones must grow, got {_text(args.decay_milestones)}")
    if args.batch_size % 2 and (args.mixup or args.cutmix or args.cutmix_minmax):
        raise ValueError(
            f"Mixup and CutMix pair the images of a batch: --batch-size must be even, got {args.batch_size}"
        )
    for name in NOT_WITH_CROP_PAD:
        if args.crop_pad is not None and name in given:
            raise ValueError(f"--crop-pad takes the place of timm's random crop: leave out it or {flag(name)}")
    if args.aa == "cifar10" and args.crop_pad is None:
        raise ValueError("--aa cifar10 is of CIFAR's recipe: give --crop-pad (4 for 32 pixels), or another policy")
    if args.dataset == "sklearn/digits" and args.data_dir:
        raise ValueError(
            f"sklearn/digits comes with scikit-learn and reads no folder: leave out {args.data_dir}, or --dataset (-c)"
        )


def _check_channels(args: Namespace) -> None:
    """Raise ValueError where model, images, mean and std do not agree on the channels."""
    if args.in_chans and args.input_size and args.in_chans != args.input_size[0]:
        raise ValueError(f"--in-chans {args.in_chans} and --input-size {_text(args.input_size)} contradict each other")
    mode, wanted = image_mode(args), channels(args)
    try:
        bands = len(ImageMode.getmode(mode).bands)
    except KeyError:
        raise ValueError(f"--input-img-mode {mode}: Pillow knows no such mode, give RGB or L") from None
    if bands != wanted:
        raise ValueError(
            f"the model takes {wanted} channels (--in-chans, --input-size), and images have {bands} ({mode}): give "
            "--in-chans 3 or 1, or the --input-img-mode that has as many"
        )
    for name in ("mean", "std"):
        value = getattr(args, name)
        if value is not None and len(value) not in (1, wanted):
            raise ValueError(f"{flag(name)} takes one number, or one for each of {wanted} channels, got {_text(value)}")


def _text(values: list[Any]) -> str:
    return " ".join(map(str, values))


def _warn(args: Namespace, typed: set[str]) -> None:
    """Say which flags of the command line do nothing."""
    if args.bce_loss and not (args.smoothing or args.mixup or args.cutmix or args.cutmix_minmax):
        _logger.warning("--bce-loss does nothing without --smoothing, --mixup or --cutmix, as in timm's train.py.")
    if args.sched not in ("none", "constant") and args.warmup_epochs >= args.epochs:
        _logger.warning(
            f"The warm-up takes the whole run (--warmup-epochs {args.warmup_epochs}, --epochs {args.epochs}): the "
            "learning rate stays low. Set a shorter warm-up, or more epochs."
        )
    if not (args.mbj or args.compare):
        for name in (*MBJ_ONLY, *(["mbj_start"] if args.loss in LOSSES else [])):
            if name in typed:
                _logger.warning(f"{flag(name)} does nothing without --mbj: this run is the baseline.")
    for name, needed in NEEDS.items():
        if name in typed and not any(getattr(args, other) not in (None, False, 0, "") for other in needed):
            _logger.warning(f"{flag(name)} does nothing without {' or '.join(map(flag, needed))}.")
