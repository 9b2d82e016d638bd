"""What a value of a flag may be: checked before anything is built, so that no run dies of it in the middle."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable, Iterable
from typing import Any

from PIL import ImageMode

Rule = tuple[str, Callable[[Any], bool]]
_AT_LEAST_0: Rule = ("0 or more", lambda x: 0 <= x < math.inf)
_ABOVE_0: Rule = ("above 0", lambda x: 0 < x < math.inf)
_AT_LEAST_1: Rule = ("1 or more", lambda x: 1 <= x < math.inf)
_PART: Rule = ("between 0 and 1", lambda x: 0 <= x <= 1)
_BELOW_1: Rule = ("at least 0 and below 1", lambda x: 0 <= x < 1)
_POSITIVE_PART: Rule = ("above 0 and at most 1", lambda x: 0 < x <= 1)

RANGES: dict[Rule, tuple[str, ...]] = {
    _AT_LEAST_0: (
        *("warmup_epochs", "cooldown_epochs", "patience_epochs", "weight_decay", "warmup_lr"),
        *("min_lr", "color_jitter", "mixup", "cutmix", "mixup_off_epoch", "epoch_repeats", "subset_seed", "seed"),
        *("lr_noise_pct", "lr_noise_std", "opt_eps", "decay_milestones", "head_init_scale"),
    ),
    _ABOVE_0: (
        *("lr", "lr_base", "lr_cycle_mul", "lr_cycle_decay", "lr_k_decay", "decay_epochs", "decay_rate", "clip_grad"),
        *("std", "scale", "ratio", "layer_decay", "bn_eps"),
    ),
    _AT_LEAST_1: (
        *("epochs", "batch_size", "validation_batch_size", "checkpoint_hist", "grad_accum_steps", "seeds", "recount"),
        *("in_chans", "num_classes", "lr_base_size", "lr_cycle_limit"),
    ),
    _PART: (
        *("hflip", "vflip", "reprob", "mixup_prob", "mixup_switch_prob", "bce_target_thresh", "model_ema_decay"),
        *("cutmix_minmax", "lr_noise", "color_jitter_prob", "grayscale_prob", "gaussian_blur_prob", "bn_momentum"),
    ),
    _BELOW_1: ("smoothing", "drop", "drop_path", "drop_block", "momentum", "opt_betas"),
    _POSITIVE_PART: ("crop_pct",),
    # Far above what any run asks for, and below what runs for ever.
    ("from 0 to 1024", lambda x: 0 <= x <= 1024): ("workers", "crop_pad"),
    ("from 1 to 8192", lambda x: 1 <= x <= 8192): ("img_size", "input_size"),
    ("between 0 and 1, without them", lambda x: 0 < x < 1): ("val_fraction",),
}
CHOICES: dict[str, tuple[Any, ...]] = {
    "eval_metric": ("top1", "top5", "class_error", "loss"),
    "clip_mode": ("norm", "value", "agc"),
    "mixup_mode": ("batch", "pair", "elem"),
    "remode": ("const", "rand", "pixel"),
    "amp_dtype": ("float16", "bfloat16"),
    "dist_bn": ("reduce", "broadcast", ""),
    "lr_base_scale": ("linear", "sqrt", ""),
    "train_interpolation": ("random", "bilinear", "bicubic", "nearest", "lanczos", "hamming", "box", ""),
    "worker_seeding": ("all", "part"),
    "sched": ("cosine", "step", "multistep", "plateau", "poly", "tanh", "constant", "rsqrt", "wsd", "none"),
    "gp": ("fast", "avg", "max", "avgmax", "avgmaxc", None),
    "train_crop_mode": ("rrc", "rkrc", "rkrr", None),
    "interpolation": ("bilinear", "bicubic", "nearest", "lanczos", "hamming", "box", ""),
}
PAIRS = ("scale", "ratio", "cutmix_minmax")


def check_ranges(args: Namespace) -> None:
    """Raise ValueError for a value that timm or torch would stumble over later, or take without a word."""
    for (words, allowed), names in RANGES.items():
        for name in names:
            value = getattr(args, name)
            if value is not None and not all(map(allowed, value if isinstance(value, list | tuple) else [value])):
                raise ValueError(f"{flag(name)} must be {words}, got {_text(value)}")
    for name, values in CHOICES.items():
        if getattr(args, name) not in values:
            raise ValueError(f"{flag(name)} must be one of {values}, got {getattr(args, name)!r}")
    for name in PAIRS:
        value = getattr(args, name)
        if value is not None and (len(value) != 2 or value[0] > value[1]):
            raise ValueError(f"{flag(name)} takes the lower and the upper bound, got {_text(value)}")
    if args.decay_milestones != sorted(args.decay_milestones):
        raise ValueError(f"--decay-milestones must grow, got {_text(args.decay_milestones)}")
    mixes = args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None
    if mixes and args.batch_size % 2:
        raise ValueError(
            f"Mixup and CutMix pair the images of a batch: --batch-size must be even, got {args.batch_size}"
        )
    check_channels(args)


def image_mode(args: Namespace) -> str:
    """Pillow's mode of the images."""
    return args.input_img_mode or ("L" if channels(args) == 1 else "RGB")


def channels(args: Namespace) -> int:
    """Channels of the model's input."""
    return args.in_chans or (args.input_size[0] if args.input_size else 3)


def check_channels(args: Namespace) -> None:
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


def flag(name: str) -> str:
    """The flag of an argument."""
    return "--" + name.replace("_", "-")


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, Iterable) and not isinstance(value, str) else str(value)
