"""The flags of train_timm: timm's own names and defaults, and ours for long tails and MBJ."""

from __future__ import annotations

from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Sequence
from typing import Any

from timm import utils

from mbj_plugin.batch_losses import LOSSES
from mbj_plugin.timm import settings
from mbj_plugin.timm.trainer.config import check_values, load_config

# Name and default of timm's flags as of 1.0.31. A default of None takes the type beside it.
_VALUES: dict[str, dict[str, Any]] = {
    "data": {
        "data_dir": (str, None),
        "dataset": "",
        "train_split": "train",
        "val_split": "validation",
        "class_map": "",
        "input_img_mode": (str, None),
        "input_key": (str, None),
        "target_key": (str, None),
        "epoch_repeats": 0.0,
    },
    "model": {
        "model": "resnet50",
        "initial_checkpoint": "",
        "resume": "",
        "num_classes": (int, None),
        "gp": (str, None),
        "img_size": (int, None),
        "in_chans": (int, None),
        "crop_pct": (float, None),
        "interpolation": "",
        "grad_accum_steps": 1,
        "drop": 0.0,
        "drop_path": (float, None),
        "torchcompile_mode": (str, None),
    },
    "optimizer": {
        "opt": "sgd",
        "opt_eps": (float, None),
        "momentum": 0.9,
        "weight_decay": 2e-5,
        "clip_grad": (float, None),
        "clip_mode": "norm",
        "layer_decay": (float, None),
    },
    "schedule": {
        "sched": "cosine",
        "lr": (float, None),
        "lr_base": 0.1,
        "lr_base_size": 256,
        "lr_base_scale": "",
        "lr_noise_pct": 0.67,
        "lr_noise_std": 1.0,
        "lr_cycle_mul": 1.0,
        "lr_cycle_decay": 0.5,
        "lr_cycle_limit": 1,
        "lr_k_decay": 1.0,
        "warmup_lr": 1e-5,
        "min_lr": 0.0,
        "epochs": 300,
        "decay_epochs": 90.0,
        "warmup_epochs": 5,
        "cooldown_epochs": 0,
        "patience_epochs": 10,
        "decay_rate": 0.1,
    },
    "augmentation": {
        "train_crop_mode": (str, None),
        "hflip": 0.5,
        "vflip": 0.0,
        "color_jitter": 0.4,
        "aa": (str, None),
        "reprob": 0.0,
        "remode": "pixel",
        "recount": 1,
        "mixup": 0.0,
        "cutmix": 0.0,
        "mixup_prob": 1.0,
        "mixup_switch_prob": 0.5,
        "mixup_mode": "batch",
        "mixup_off_epoch": 0,
        "smoothing": 0.1,
        "bce_target_thresh": (float, None),
        "train_interpolation": "random",
    },
    "run": {
        "device": "auto",
        "amp_dtype": "float16",
        "dist_bn": "reduce",
        "model_ema_decay": 0.9998,
        "seed": 42,
        "worker_seeding": "all",
        "checkpoint_hist": 10,
        "output": "",
        "experiment": "",
        "eval_metric": "top1",
        "wandb_project": (str, None),
    },
}
_SWITCHES = (
    *("dataset_download", "pretrained", "no_resume_opt", "channels_last", "sched_on_updates", "warmup_prefix"),
    *("no_aug", "bce_loss", "bce_sum", "amp", "no_ddp_bb", "sync_bn", "model_ema", "model_ema_warmup", "pin_mem"),
    *("no_prefetcher", "log_wandb", "torchscript"),
)
_LISTS: dict[str, tuple[type, Any, Any]] = {
    "input_size": (int, 3, None),
    "mean": (float, "+", None),
    "std": (float, "+", None),
    "opt_betas": (float, "+", None),
    "lr_noise": (float, "+", None),
    "decay_milestones": (int, "+", [90, 180, 270]),
    "scale": (float, "+", [0.08, 1.0]),
    "ratio": (float, "+", [3.0 / 4.0, 4.0 / 3.0]),
    "cutmix_minmax": (float, "+", None),
}
# Without a data set the main job runs: MBJ on scikit-learn's digits.
DEFAULT_CONFIG = "digits"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def make_parser() -> ArgumentParser:
    """The parser of train_timm."""
    parser = ArgumentParser(
        prog="train_timm",
        description="Train a timm classifier on long-tailed data, with Memory-based Jitter (--mbj). Flags that timm's "
        "train.py has mean the same here. Without a data set it trains on scikit-learn's digits.",
    )
    parser.add_argument("data", nargs="?", metavar="DIR", help="data folder, as --data-dir")
    parser.add_argument("-c", "--config", metavar="FILE", help="YAML file, or the name of a shipped config")
    settings.add_arguments(parser)
    ours = parser.add_argument_group("long tails")
    ours.add_argument("--compare", action="store_true", help="train the baseline too, with the same seed, side by side")
    ours.add_argument(
        "--loss",
        choices=LOSSES,
        default="ce",
        help="batch loss, with --mbj or without: 'ce' is what timm's flags choose; the others are "
        "for long tails and take hard labels (default: %(default)s)",
    )
    ours.add_argument("--seeds", type=int, default=1, metavar="N", help="train with N seeds, report mean and spread")
    ours.add_argument("--imbalance-ratio", type=float, metavar="R", help="cut the training set to n_max / n_min = R")
    ours.add_argument("--subset-seed", type=int, default=0, metavar="S", help="which images are cut (default: 0)")
    ours.add_argument("--crop-pad", type=int, metavar="P", help="pad by P pixels, crop, flip (CIFAR's recipe)")
    for title, values in _VALUES.items():
        group = parser.add_argument_group(f"timm: {title}")
        for name, default in values.items():
            kind, default = default if isinstance(default, tuple) else (type(default), default)
            group.add_argument(_flag(name), type=kind, default=default, metavar=kind.__name__.upper())
    group = parser.add_argument_group("timm: more")
    for name in _SWITCHES:
        group.add_argument(_flag(name), action="store_true")
    for name, (kind, nargs, default) in _LISTS.items():
        group.add_argument(_flag(name), type=kind, nargs=nargs, default=default)
    group.add_argument("-b", "--batch-size", type=int, default=128)
    group.add_argument("-vb", "--validation-batch-size", type=int)
    group.add_argument("-j", "--workers", type=int, default=4)
    group.add_argument("--model-kwargs", nargs="*", default={}, action=utils.ParseKwargs)
    group.add_argument("--opt-kwargs", nargs="*", default={}, action=utils.ParseKwargs)
    group.add_argument("--torchcompile", nargs="?", const="inductor", metavar="BACKEND")
    group.add_argument("--local-rank", "--local_rank", type=int, default=0, help="set by torchrun")
    group.add_argument(
        "--progress", action=BooleanOptionalAction, default=None, help="progress bar (default: on a tty)"
    )
    return parser


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Arguments, in this order: timm's defaults, the config, the command line.

    Raises:
        ValueError: for a config that is not found, or a key in it that is no flag.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    name = args.config or ("" if args.data or args.data_dir or args.dataset else DEFAULT_CONFIG)
    if name:
        values = load_config(name)
        check_values(values, parser, f"config {name}")
        parser.set_defaults(**values)
        args = parser.parse_args(argv)
    if args.mbj_recipe != "default":
        parser.set_defaults(**settings.RECIPES[args.mbj_recipe])
        args = parser.parse_args(argv)
    args.data_dir = args.data_dir or args.data
    args.config = name
    args.prefetcher = not args.no_prefetcher
    args.grad_accum_steps = max(1, args.grad_accum_steps)
    _check(args)
    return args


def _check(args: Namespace) -> None:
    """Raise ValueError for values that timm would stumble over in mid-run."""
    allowed = {
        "eval_metric": ("top1", "top5", "loss"),
        "clip_mode": ("norm", "value", "agc"),
        "mixup_mode": ("batch", "pair", "elem"),
    }
    for name, values in allowed.items():
        if getattr(args, name) not in values:
            raise ValueError(f"{_flag(name)} must be one of {values}, got {getattr(args, name)!r}")
    for name in ("epochs", "batch_size", "checkpoint_hist"):
        if getattr(args, name) < 1:
            raise ValueError(f"{_flag(name)} must be 1 or more, got {getattr(args, name)}")
    mixes = args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None
    if mixes and args.batch_size % 2:
        raise ValueError(
            f"Mixup and CutMix pair the images of a batch: --batch-size must be even, got {args.batch_size}"
        )
