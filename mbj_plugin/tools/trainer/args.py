"""The flags of train_timm: timm's own names and defaults, and ours for long tails and MBJ."""

from __future__ import annotations

import argparse
import logging
from argparse import SUPPRESS, BooleanOptionalAction, Namespace
from collections.abc import Sequence
from typing import Any

from timm import utils

from mbj_plugin.batch_losses import LOSSES
from mbj_plugin.command_line import OneLineParser
from mbj_plugin.settings import RULES
from mbj_plugin.timm.settings import RECIPES, add_arguments, from_args
from mbj_plugin.tools.trainer.config import check_values, load_config
from mbj_plugin.tools.trainer.data import SAMPLERS
from mbj_plugin.tools.trainer.error_table import TABLES
from mbj_plugin.tools.trainer.flags import LISTS, SWITCHES, TRAIN_PY, VALUES
from mbj_plugin.tools.trainer.ranges import check_ranges, flag

_logger = logging.getLogger("mbj_plugin")
# Without a data set the main job runs: MBJ on scikit-learn's digits.
DEFAULT_CONFIG = "digits"
# What MBJ alone reads. Its start is also that of a late phase of one's own loss.
MBJ_ONLY = [f"mbj_{name}" for name in RULES if name not in ("start", "class_counts", "diagnostics")]
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


class _Parser(OneLineParser):
    def explain_unknown(self, flag: str, message: str) -> str:
        """For a flag of timm's train.py that is not here, the door where it is."""
        if flag.startswith("--") and flag[2:].replace("-", "_") in TRAIN_PY:
            return (
                f"train_timm has no {flag}, timm's train.py has: MBJ='...' python -m mbj_plugin.timm.launch train.py "
                f"... {flag} trains MBJ with it (docs/timm.md)"
            )
        return super().explain_unknown(flag, message)


class _Help(argparse.HelpFormatter):
    """Help with the default of each flag, where it has one and the text does not say it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text, silent = action.help, action.nargs == 0 or action.default in (None, "", {}, SUPPRESS)
        if not text or "default" in text or silent or not action.option_strings:
            return text
        return f"{text} (default: %(default)s)"


def make_parser() -> argparse.ArgumentParser:
    """The parser of train_timm."""
    parser = _Parser(
        prog="train_timm",
        description="Train a timm classifier on long-tailed data, with Memory-based Jitter (--mbj). Flags that timm's "
        "train.py has mean the same here. Without a data set it trains on scikit-learn's digits.",
        formatter_class=_Help,
    )
    parser.add_argument("data", nargs="?", metavar="DIR", help="data folder, as --data-dir")
    parser.add_argument("-c", "--config", metavar="FILE", help="YAML file, or the name of a shipped config")
    add_arguments(parser)
    ours = parser.add_argument_group("long tails")
    ours.add_argument(
        "--compare",
        action="store_true",
        help="MBJ beside its baseline: one run where its batch classifier is the baseline, else a second one",
    )
    ours.add_argument(
        "--loss",
        default="ce",
        metavar="NAME",
        help=f"batch loss, with --mbj or without: {', '.join(LOSSES)}, or module:Class of your own, made as "
        "Class(class_counts) or Class(). 'ce' is what timm's flags choose; the others take hard labels, so --smoothing "
        "is 0 beside them (default: %(default)s)",
    )
    ours.add_argument("--seeds", type=int, default=1, metavar="N", help="train with N seeds, report mean and spread")
    ours.add_argument(
        "--table",
        choices=TABLES,
        default="text",
        help="how the errors are printed at the end: for the console, or to paste into a page or a paper "
        "(default: %(default)s)",
    )
    ours.add_argument("--imbalance-ratio", type=float, metavar="R", help="cut the training set to n_max / n_min = R")
    ours.add_argument(
        "--sampler",
        choices=SAMPLERS,
        help="draw all classes alike, or by the square root of their images; what MBJ and the losses count stays the "
        "set's (default: each image once an epoch)",
    )
    ours.add_argument(
        "--val-fraction",
        type=float,
        metavar="X",
        help="hold out this part of each class of the training images, and evaluate on it; a class of one image keeps "
        "it (default: evaluate on --val-split)",
    )
    ours.add_argument("--subset-seed", type=int, default=0, metavar="S", help="which images are cut")
    ours.add_argument(
        "--crop-pad",
        type=int,
        metavar="P",
        help="pad by P pixels and crop, in place of timm's random crop (CIFAR's recipe); the other augmentations count",
    )
    for title, values in VALUES.items():
        group = parser.add_argument_group(f"timm: {title}")
        for name, (default, text) in values.items():
            kind, default = default if isinstance(default, tuple) else (type(default), default)
            group.add_argument(flag(name), type=kind, default=default, metavar=kind.__name__.upper(), help=text)
    _add_more(parser.add_argument_group("timm: more"))
    return parser


def _add_more(group: Any) -> None:
    for name, text in SWITCHES.items():
        group.add_argument(flag(name), action="store_true", help=text)
    for name, (kind, nargs, default, text) in LISTS.items():
        group.add_argument(
            flag(name), type=kind, nargs=nargs, default=default, metavar=kind.__name__.upper(), help=text
        )
    group.add_argument("-b", "--batch-size", type=int, default=128, metavar="N", help="images of a batch, on each rank")
    group.add_argument("-vb", "--validation-batch-size", type=int, metavar="N", help="in evaluation; --batch-size")
    group.add_argument("-j", "--workers", type=int, default=4, metavar="N", help="processes that load images")
    for name, text in (("model", "more arguments of the model"), ("opt", "more arguments of the optimizer")):
        group.add_argument(
            f"--{name}-kwargs", nargs="*", default={}, action=utils.ParseKwargs, metavar="KEY=VALUE", help=text
        )
    group.add_argument(
        "--torchcompile", nargs="?", const="inductor", metavar="BACKEND", help="compile the model (inductor)"
    )
    group.add_argument("--local-rank", "--local_rank", type=int, default=0, help="set by torchrun")
    group.add_argument(
        "--progress", action=BooleanOptionalAction, default=None, help="progress bar (default: on a tty)"
    )


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Arguments, in this order: timm's defaults, the config, the command line.

    Raises:
        ValueError: for a config that is not found, or a key in it that is no flag, and for a value out of range.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    typed = _typed(argv)
    name = args.config or ("" if args.data or args.data_dir or args.dataset else DEFAULT_CONFIG)
    values: dict[str, Any] = {}
    if name:
        values = load_config(name)
        check_values(values, parser, f"config {name}")
        parser.set_defaults(**values)
        args = parser.parse_args(argv)
    if args.mbj_recipe != "default":
        parser.set_defaults(**{f"mbj_{name}": value for name, value in RECIPES[args.mbj_recipe].items()})
        args = parser.parse_args(argv)
    given = typed | values.keys()
    hard_labels = args.loss != "ce" or ((args.mbj or args.compare) and args.mbj_classifier_loss is not None)
    if hard_labels and "smoothing" not in given:
        args.smoothing = 0.0
    if args.crop_pad is not None and "color_jitter" not in given:
        args.color_jitter = 0.0  # CIFAR's recipe has none; timm's default is ImageNet's
    args.data_dir = args.data_dir or args.data
    args.config = name
    args.prefetcher = not args.no_prefetcher
    check_ranges(args)
    if args.mbj or args.compare:  # what is recorded is what counts
        settings = from_args(args)
        args.mbj_eta, args.mbj_size = settings.eta, settings.size
    _check_together(args, typed, given)
    return args


def _typed(argv: Sequence[str] | None) -> set[str]:
    """Names of the arguments that the command line gives."""
    parser = make_parser()
    for action in parser._actions:
        action.default = SUPPRESS
    return set(vars(parser.parse_args(argv)))


def _check_together(args: Namespace, typed: set[str], given: set[str]) -> None:
    """Refuse flags that contradict each other, and say which ones do nothing.

    Args:
        args: of the run.
        typed: names that the command line gives.
        given: those, and what the config gives.
    """
    if args.crop_pad is not None:
        for name in NOT_WITH_CROP_PAD:
            if name in given:
                raise ValueError(f"--crop-pad takes the place of timm's random crop: leave out it or {flag(name)}")
    if args.aa == "cifar10" and args.crop_pad is None:
        raise ValueError("--aa cifar10 is of CIFAR's recipe: give --crop-pad (4 for 32 pixels), or another policy")
    if args.torchcompile and args.torchscript:
        raise ValueError("--torchcompile and --torchscript exclude each other: leave one out")
    if args.dataset == "sklearn/digits" and args.data_dir:
        raise ValueError(
            f"sklearn/digits comes with scikit-learn and reads no folder: leave out {args.data_dir}, or --dataset (-c)"
        )
    if args.bce_loss and not (args.smoothing or args.mixup or args.cutmix or args.cutmix_minmax):
        _logger.warning("--bce-loss does nothing without --smoothing, --mixup or --cutmix, as in timm's train.py.")
    if not (args.mbj or args.compare):
        for name in (*MBJ_ONLY, *(["mbj_start"] if args.loss in LOSSES else [])):
            if name in typed:
                _logger.warning(f"{flag(name)} does nothing without --mbj: this run is the baseline.")
    for name, needed in NEEDS.items():
        if name in typed and not any(getattr(args, other) not in (None, False, 0, "") for other in needed):
            _logger.warning(f"{flag(name)} does nothing without {' or '.join(map(flag, needed))}.")
