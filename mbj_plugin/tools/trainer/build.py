"""The parts of a run, built by timm's factories in the order of timm's train.py."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm import utils
from timm.data import FastCollateMixup, Mixup, create_loader, resolve_data_config
from timm.layers import convert_sync_batchnorm, set_fast_norm
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models import create_model
from timm.optim import create_optimizer_v2, list_optimizers, optimizer_kwargs
from timm.utils import NativeScaler
from torch import nn
from torch.utils.data import WeightedRandomSampler

import mbj_plugin.timm  # noqa: F401  registers resnet32_cifar
from mbj_plugin.batch_losses import create_loss, loss_class
from mbj_plugin.command_line import did_you_mean, reason
from mbj_plugin.timm.compat import loader_inside
from mbj_plugin.timm.counts import counts_from_file, dataset_labels, training_counts
from mbj_plugin.tools.parser import check_device
from mbj_plugin.tools.trainer.data import (
    SAMPLERS,
    LongTailSubset,
    Part,
    check_same_classes,
    make_dataset,
    pad_crop,
    split_indices,
)

# Flags that timm's create_loader takes by the same name.
AUGMENTATION = (
    *("no_aug", "train_crop_mode", "scale", "ratio", "hflip", "vflip", "color_jitter_prob", "grayscale_prob"),
    *("gaussian_blur_prob", "worker_seeding"),
)


@dataclasses.dataclass
class Data:
    """Loaders of a run, and what it must know of them."""

    train: Any
    evaluation: Any
    counts: np.ndarray
    #: Where timm's prefetcher, which mixes otherwise, is off.
    mixup_fn: Mixup | None


def channels(args: Namespace) -> int:
    """Channels of the model's input."""
    return args.in_chans or (args.input_size[0] if args.input_size else 3)


def image_mode(args: Namespace) -> str:
    """Pillow's mode of the images."""
    return args.input_img_mode or ("L" if channels(args) == 1 else "RGB")


def init_device(args: Namespace) -> torch.device:
    """The device of this process; joins the process group under torchrun."""
    if hasattr(args, "world_size"):
        return torch.device(args.device)  # a later run of the same process, which has joined its group already
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    check_device(args.device)
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    return utils.init_distributed_device(args)


def make_model(args: Namespace, device: torch.device) -> nn.Module:
    """The model on its device."""
    if not (timm.is_model(args.model.split(".")[0]) or ":" in args.model):
        raise ValueError(f"timm has no model {args.model!r}{did_you_mean(args.model, timm.list_models())}")
    for path, named in ((args.initial_checkpoint, "--initial-checkpoint"), (args.pretrained_path, "--pretrained-path")):
        if path and not Path(path).is_file():
            raise ValueError(f"there is no file {path}, which {named} names")
    if args.fast_norm:
        set_fast_norm()
    before = torch.get_rng_state()
    model: Any = _create(args)
    if args.pretrained and args.pretrained_path:
        _check_loaded(model, args, before)
    if args.grad_checkpointing:
        try:
            model.set_grad_checkpointing(enable=True)
        except (AssertionError, AttributeError):
            raise ValueError(f"{args.model} has no gradient checkpointing: leave out --grad-checkpointing") from None
    if (adapt := getattr(loss_class(args.loss), "adapt_model", None)) is not None:
        model = adapt(model)
    model.to(device=device)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    if args.world_size > 1 and args.sync_bn:
        args.dist_bn = ""
        model = convert_sync_batchnorm(model)
    return model


def _create(args: Namespace) -> nn.Module:
    more: dict[str, Any] = dict(args.model_kwargs)
    if args.pretrained_path:  # -1: the classifier is made anew
        more["pretrained_cfg_overlay"] = {"file": args.pretrained_path, "num_classes": -1}
    try:
        return create_model(
            args.model,
            pretrained=args.pretrained,
            in_chans=channels(args),
            num_classes=args.num_classes,
            drop_rate=args.drop,
            drop_path_rate=args.drop_path,
            drop_block_rate=args.drop_block,
            global_pool=args.gp,
            bn_momentum=args.bn_momentum,
            bn_eps=args.bn_eps,
            checkpoint_path=args.initial_checkpoint,
            **more,
        )
    except OSError as error:
        if not args.pretrained or args.pretrained_path:
            raise
        published = timm.get_pretrained_cfg(args.model)
        page = f"huggingface.co/{published.hf_hub_id}" if published and published.hf_hub_id else "the model's page"
        raise ValueError(
            f"cannot download the weights of --model {args.model}: {reason(error)[:200]} On a machine without internet "
            f"access, copy model.safetensors from {page}, and add --pretrained-path FILE"
        ) from error
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:  # the ways in which timm refuses a value
        why = f"timm cannot make --model {args.model} of these flags: {reason(error)[:200]}"
        if args.initial_checkpoint and "size mismatch" in str(error):
            why = (
                f"--initial-checkpoint {args.initial_checkpoint} does not fit {args.model} with {args.num_classes} "
                f"classes: where it has other classes, --pretrained --pretrained-path {args.initial_checkpoint} takes "
                "all but its classifier"
            )
        raise ValueError(why) from error


def _check_loaded(model: nn.Module, args: Namespace, before: torch.Tensor) -> None:
    """Raise ValueError where --pretrained-path has left each tensor as it was drawn; timm only warns of it. ``before``
    is torch's generator before the model was made."""
    without = {"pretrained": False, "pretrained_path": None, "initial_checkpoint": ""}
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(before)
        drawn = _create(Namespace(**vars(args) | without)).state_dict()
    if all(torch.equal(value, drawn[name]) for name, value in model.state_dict().items()):
        raise ValueError(f"--pretrained-path {args.pretrained_path}: none of its tensors fits {args.model}")


def make_amp(args: Namespace, device: torch.device) -> tuple[Callable, Any]:
    """Context of the forward pass, and the loss scaler that fp16 needs."""
    if not args.amp:
        return nullcontext, None
    dtype = getattr(torch, args.amp_dtype)
    scaler = NativeScaler(device=device.type) if device.type == "cuda" and dtype == torch.float16 else None
    return partial(torch.autocast, device_type=device.type, dtype=dtype), scaler


def make_datasets(args: Namespace) -> tuple[Any, Any]:
    """The training and the evaluation set; sets ``args.num_classes`` where it is not given."""
    mode = image_mode(args)
    train_set = make_dataset(args, args.train_split, True, mode)
    if args.val_fraction is None:
        evaluation_set = make_dataset(args, args.val_split, False, mode)
    else:
        whole = make_dataset(args, args.train_split, False, mode)
        kept, held_out = split_indices(dataset_labels(whole), args.val_fraction, args.subset_seed)
        train_set, evaluation_set = Part(train_set, kept), Part(whole, held_out)
    if args.imbalance_ratio is not None:
        train_set = LongTailSubset(train_set, args.imbalance_ratio, args.subset_seed)
    check_same_classes(train_set, evaluation_set)
    if args.num_classes is None:
        path = args.mbj_class_counts
        args.num_classes = len(counts_from_file(path)) if path else int(dataset_labels(train_set).max()) + 1
    return train_set, evaluation_set


def make_loaders(args: Namespace, model: nn.Module, datasets: tuple[Any, Any], device: torch.device) -> Data:
    """timm's loaders of the training and the evaluation set."""
    config = resolve_data_config(vars(args), model=model)
    counts = training_counts(datasets[0], args.num_classes, args.mbj_class_counts)
    shared: dict[str, Any] = {
        **{name: config[name] for name in ("input_size", "mean", "std")},
        "num_workers": args.workers,
        "distributed": args.distributed,
        "pin_memory": args.pin_mem,
        "device": device,
        "use_prefetcher": args.prefetcher,
        # New workers each epoch are seeded from the generator that the checkpoint holds, so that a resume is exact.
        "persistent_workers": False,
    }
    mixup = _mixup_settings(args)
    # timm draws a number for a jitter of 0 too; CIFAR's recipe has none.
    jitter: Any = args.color_jitter if args.color_jitter or args.crop_pad is None else None
    try:
        train_loader: Any = create_loader(
            datasets[0],
            batch_size=args.batch_size,
            is_training=True,
            re_prob=args.reprob,
            re_mode=args.remode,
            re_count=args.recount,
            color_jitter=jitter,
            auto_augment=None if args.aa == "cifar10" else args.aa,
            interpolation=(not args.no_aug and args.train_interpolation) or config["interpolation"],
            **{name: getattr(args, name) for name in AUGMENTATION},
            collate_fn=FastCollateMixup(**mixup) if mixup and args.prefetcher else None,
            **shared,
        )
    except AssertionError as error:
        raise ValueError(f"timm cannot make its augmentation, check --aa {args.aa}: {reason(error)}") from error
    if args.sampler:
        batches = loader_inside(train_loader).batch_sampler
        if batches is None:
            raise ValueError(f"--sampler {args.sampler} needs a data set with indices, {args.dataset!r} only streams")
        # By torch's generator, of which each rank has its own and which a checkpoint holds.
        weights = np.power(counts, SAMPLERS[args.sampler] - 1.0)[dataset_labels(datasets[0])]
        batches.sampler = WeightedRandomSampler(weights.tolist(), len(batches.sampler))
    if args.crop_pad is not None:
        datasets[0].transform = pad_crop(
            datasets[0].transform, config["input_size"][-2:], args.crop_pad, args.aa == "cifar10"
        )
    if len(train_loader) == 0:
        raise ValueError(
            f"the {len(datasets[0])} training images do not fill one batch: set --batch-size {len(datasets[0])} or less"
        )
    evaluation_loader = create_loader(
        datasets[1],
        batch_size=args.validation_batch_size or args.batch_size,
        is_training=False,
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
        **shared,
    )
    return Data(train_loader, evaluation_loader, counts, Mixup(**mixup) if mixup and not args.prefetcher else None)


def _mixup_settings(args: Namespace) -> dict[str, Any]:
    """Arguments of timm's Mixup; empty where it is off."""
    if not (args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None):
        return {}
    return {
        "mixup_alpha": args.mixup,
        "cutmix_alpha": args.cutmix,
        "cutmix_minmax": args.cutmix_minmax,
        "prob": args.mixup_prob,
        "switch_prob": args.mixup_switch_prob,
        "mode": args.mixup_mode,
        "label_smoothing": args.smoothing,
        "num_classes": args.num_classes,
    }


def make_batch_loss(args: Namespace, counts: np.ndarray, start: int) -> nn.Module:
    """L_batch: one of :mod:`mbj_plugin.batch_losses`, or what timm's train.py chooses. Where the loss has a late phase,
    ``start`` is the number of calls before it."""
    mixup = bool(_mixup_settings(args))
    hard = f"--loss {args.loss}" if args.loss != "ce" else ""
    if args.mbj and args.mbj_classifier_loss:
        hard = f"--mbj-classifier-loss {args.mbj_classifier_loss} (--mbj-recipe balanced)"
    if hard and (mixup or args.smoothing or args.bce_loss):
        raise ValueError(f"{hard} takes hard labels: add --smoothing 0, leave out Mixup, CutMix and --bce-loss")
    if args.loss != "ce":
        return create_loss(args.loss, counts.tolist(), start=start)
    if args.bce_loss and (mixup or args.smoothing):
        return BinaryCrossEntropy(
            smoothing=0.0 if mixup else args.smoothing,
            target_threshold=args.bce_target_thresh,
            sum_classes=args.bce_sum,
        )
    if mixup:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(smoothing=args.smoothing) if args.smoothing else nn.CrossEntropyLoss()


def check_input(args: Namespace, model: nn.Module, device: torch.device) -> None:
    """Raise ValueError where the model cannot take images of this size, before any training."""
    size = resolve_data_config(vars(args), model=model)["input_size"]
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, *size, device=device))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{args.model} cannot take images of {' x '.join(map(str, size))} ({reason(error)[:120]}): leave out "
            f"--input-size; a transformer takes another size with --model-kwargs img_size={size[-1]}"
        ) from error
    finally:
        model.train(was_training)


def make_optimizer(args: Namespace, model: nn.Module) -> torch.optim.Optimizer:
    """timm's optimizer of that name."""
    known = [str(name) for name in list_optimizers()]
    if args.opt.lower().removeprefix("lookahead_") not in known:
        raise ValueError(f"timm has no optimizer --opt {args.opt}{did_you_mean(args.opt.lower(), known)}")
    try:
        return create_optimizer_v2(model, **optimizer_kwargs(cfg=args), **args.opt_kwargs)
    except TypeError as error:
        raise ValueError(f"--opt {args.opt} does not take these --opt-kwargs: {reason(error)[:200]}") from error


def scaled_lr(args: Namespace) -> float:
    """Learning rate of the global batch, by timm's rule."""
    ratio = args.batch_size * args.world_size * args.grad_accum_steps / args.lr_base_size
    if not args.lr_base_scale:
        args.lr_base_scale = "sqrt" if any(name in args.opt.lower() for name in ("ada", "lamb")) else "linear"
    return args.lr_base * (ratio**0.5 if args.lr_base_scale == "sqrt" else ratio)
