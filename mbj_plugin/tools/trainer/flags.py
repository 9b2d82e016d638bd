"""Every flag but those of MBJ: its default, what it may be, and what it does. timm's are as of its release 1.0.31."""

from __future__ import annotations

from typing import Any, NamedTuple

from mbj_plugin.batch_losses import LOSSES
from mbj_plugin.checks import BELOW_1, MOST_CLASSES, Range
from mbj_plugin.timm.settings import flag
from mbj_plugin.tools.trainer.data import SAMPLERS
from mbj_plugin.tools.trainer.error_table import TABLES


class Flag(NamedTuple):
    """What a flag is.

    Args:
        default: its value where it is not given.
        allowed: the range of its numbers, its few values, ``str`` for any text or ``bool`` for a switch.
        help: what it does.
        nargs: argparse's, where it takes several values.
    """

    default: Any
    allowed: Any
    help: str
    nargs: Any = None

    def add_to(self, group: Any, names: list[str]) -> None:
        """Add it to a group of argparse's parser."""
        if self.allowed is bool:
            group.add_argument(*names, action="store_true", help=self.help)
            return
        told = self.default in (None, "") or "default" in self.help
        text = self.help if told else f"{self.help} (default: %(default)s)"
        values: dict[str, Any] = {"type": str, "choices": self.allowed}
        if self.allowed is str:
            values = {"type": str, "metavar": "TEXT"}
        elif isinstance(self.allowed, Range):
            values = {"type": int, "metavar": "N"} if self.allowed.whole else {"type": float, "metavar": "X"}
        group.add_argument(*names, nargs=self.nargs, default=self.default, help=text, **values)

    def check(self, name: str, value: Any) -> None:
        """Raise ValueError for a number out of range, before anything is built."""
        if isinstance(self.allowed, Range) and value is not None:
            for number in value if isinstance(value, list) else [value]:
                self.allowed.checked(flag(name), number)


# The bounds of whole numbers are far above what any run asks for, and below what runs for ever.
ANY, FROM_0, ABOVE_0, PART, BELOW_ONE = Range(-1e30), Range(), Range(above=True), Range(0, 1), Range(0, BELOW_1)
FROM_0_ON, COUNT, PIXELS = Range(0, 10**5, whole=True), Range(1, 10**5, whole=True), Range(1, 8192, whole=True)
SEED = Range(0, 4 * 10**9, whole=True)  # NumPy's ends at 2^32, and --seeds and ranks count up
FLAGS: dict[str, dict[str, Flag]] = {
    "long tails": {
        "compare": Flag(
            False,
            bool,
            "MBJ beside its baseline: one run where its batch classifier is the baseline, else a second one",
        ),
        "loss": Flag(
            "ce",
            str,
            f"batch loss, with --mbj or without: {', '.join(LOSSES)}, or module:Class of your own, made as "
            "Class(class_counts) or Class(). 'ce' is what timm's flags choose; the others take hard labels, so "
            "--smoothing is 0 beside them",
        ),
        "seeds": Flag(1, COUNT, "train with so many seeds, report mean and spread"),
        "table": Flag("text", tuple(TABLES), "how the errors are printed: for the console, or to paste"),
        "imbalance_ratio": Flag(None, Range(1), "cut the training set to n_max / n_min = this"),
        "sampler": Flag(
            None,
            tuple(SAMPLERS),
            "draw all classes alike, or by the square root of their images; what MBJ and the losses count stays the "
            "set's (default: each image once an epoch)",
        ),
        "val_fraction": Flag(
            None,
            Range(0, BELOW_1, above=True),
            "hold out this part of each class of the training images, and evaluate on it; a class of one image keeps "
            "it (default: evaluate on --val-split)",
        ),
        "subset_seed": Flag(0, SEED, "which images are cut"),
        "crop_pad": Flag(
            None,
            Range(0, 1024, whole=True),
            "pad by so many pixels and crop, in place of timm's random crop (CIFAR's recipe); the other augmentations "
            "count",
        ),
    },
    "timm: data": {
        "data_dir": Flag(None, str, "folder of the images, with a folder or tar file for each split"),
        "dataset": Flag(
            "", str, "torch/NAME, hfds/NAME, tfds/NAME, wds/NAME or sklearn/digits; empty = a folder of images"
        ),
        "train_split": Flag("train", str, "split, or folder, to train on"),
        "val_split": Flag("validation", str, "split, or folder, to evaluate on"),
        "class_map": Flag("", str, "file of class names and indices"),
        "input_img_mode": Flag(None, str, "Pillow's mode of the images; RGB, or L for one channel"),
        "input_key": Flag(None, str, "key of the images in a Hugging Face data set"),
        "target_key": Flag(None, str, "key of the classes in a Hugging Face data set"),
        "workers": Flag(4, Range(0, 1024, whole=True), "processes that load images"),
        "batch_size": Flag(128, COUNT, "images of a batch, on each rank"),
        "validation_batch_size": Flag(None, COUNT, "in evaluation; --batch-size"),
        "epoch_repeats": Flag(0.0, FROM_0, "times that a stream is repeated in an epoch"),
    },
    "timm: model": {
        "model": Flag("resnet50", str, "name of the model"),
        "pretrained_path": Flag(None, str, "with --pretrained: take these weights, all but the classifier"),
        "initial_checkpoint": Flag("", str, "weights to begin with, of a model with the same classes"),
        "resume": Flag("", str, "checkpoint to go on with: OUTPUT/EXPERIMENT/last.pth.tar"),
        "num_classes": Flag(None, Range(1, MOST_CLASSES, whole=True), "classes; those of the images"),
        "gp": Flag(None, ("fast", "avg", "max", "avgmax", "avgmaxc"), "global pooling"),
        "img_size": Flag(None, PIXELS, "side of the image in pixels"),
        "in_chans": Flag(None, COUNT, "channels of the image, 1 or 3"),
        "crop_pct": Flag(None, Range(0, 1, above=True), "part of the image that evaluation sees"),
        "interpolation": Flag(
            "",
            ("bilinear", "bicubic", "nearest", "lanczos", "hamming", "box", ""),
            "of resizing in evaluation; empty = the model's own",
        ),
        "grad_accum_steps": Flag(1, COUNT, "batches of one optimizer step"),
        "head_init_scale": Flag(None, FROM_0, "factor on the classifier's first weights"),
        "head_init_bias": Flag(None, ANY, "the classifier's first bias"),
        "drop": Flag(0.0, BELOW_ONE, "dropout rate"),
        "drop_path": Flag(None, BELOW_ONE, "rate of stochastic depth"),
        "drop_block": Flag(None, BELOW_ONE, "rate of DropBlock"),
        "bn_momentum": Flag(None, PART, "of batch normalisation"),
        "bn_eps": Flag(None, ABOVE_0, "of batch normalisation"),
        "torchcompile_mode": Flag(None, str, "mode of torch.compile"),
    },
    "timm: optimizer": {
        "opt": Flag("sgd", str, "optimizer; timm's sgd is Nesterov's, 'momentum' is plain"),
        "opt_eps": Flag(None, FROM_0, "epsilon; the optimizer's own"),
        "momentum": Flag(0.9, BELOW_ONE, "of SGD"),
        "weight_decay": Flag(2e-5, FROM_0, "weight decay"),
        "clip_grad": Flag(None, ABOVE_0, "bound of the gradient; off"),
        "clip_mode": Flag(
            "norm", ("norm", "value", "agc"), "what is bounded: the norm of all, each number, or each weight's share"
        ),
        "layer_decay": Flag(None, ABOVE_0, "factor of the rate from a layer to the one below; off"),
    },
    "timm: schedule": {
        "sched": Flag(
            "cosine",
            ("cosine", "step", "multistep", "plateau", "poly", "tanh", "constant", "rsqrt", "wsd", "none"),
            "how the rate falls",
        ),
        "lr": Flag(None, ABOVE_0, "learning rate; from --lr-base and the batch size"),
        "lr_base": Flag(0.1, ABOVE_0, "learning rate at a batch of --lr-base-size"),
        "lr_base_size": Flag(256, COUNT, "see --lr-base"),
        "lr_base_scale": Flag("", ("linear", "sqrt", ""), "how the rate grows with the batch; by the optimizer"),
        "lr_noise_pct": Flag(0.67, FROM_0, "bound of the noise on the rate"),
        "lr_noise_std": Flag(1.0, FROM_0, "its standard deviation"),
        "lr_cycle_mul": Flag(1.0, ABOVE_0, "factor of a cycle's length"),
        "lr_cycle_decay": Flag(0.5, ABOVE_0, "factor of a cycle's rate"),
        "lr_cycle_limit": Flag(1, COUNT, "number of cycles"),
        "lr_k_decay": Flag(1.0, ABOVE_0, "k-decay of cosine and poly"),
        "warmup_lr": Flag(1e-5, FROM_0, "learning rate that the warm-up begins with"),
        "min_lr": Flag(0.0, FROM_0, "lowest learning rate"),
        "epochs": Flag(300, COUNT, "epochs"),
        "decay_epochs": Flag(90.0, ABOVE_0, "epochs between the decays of 'step'"),
        "warmup_epochs": Flag(5, FROM_0_ON, "epochs of warm-up"),
        "cooldown_epochs": Flag(0, FROM_0_ON, "epochs at the lowest rate, after the others"),
        "patience_epochs": Flag(10, FROM_0_ON, "epochs without gain before 'plateau' decays"),
        "decay_rate": Flag(0.1, ABOVE_0, "factor of a decay"),
    },
    "timm: augmentation": {
        "train_crop_mode": Flag(None, ("rrc", "rkrc", "rkrr"), "how training crops; rrc"),
        "hflip": Flag(0.5, PART, "probability of a flip left to right"),
        "vflip": Flag(0.0, PART, "probability of a flip upside down"),
        "color_jitter": Flag(0.4, FROM_0, "strength of colour jitter; 0 beside --crop-pad, unless given"),
        "color_jitter_prob": Flag(None, PART, "probability of colour jitter; always"),
        "grayscale_prob": Flag(None, PART, "probability of a grey image"),
        "gaussian_blur_prob": Flag(None, PART, "probability of blur"),
        "aa": Flag(
            None,
            str,
            "AutoAugment policy, such as rand-m9-mstd0.5, for colour jitter; cifar10, with Cutout, beside --crop-pad",
        ),
        "reprob": Flag(0.0, PART, "probability of random erasing"),
        "remode": Flag("pixel", ("const", "rand", "pixel"), "what random erasing fills in"),
        "recount": Flag(1, COUNT, "patches that are erased"),
        "mixup": Flag(0.0, FROM_0, "alpha of Mixup; 0 = off"),
        "cutmix": Flag(0.0, FROM_0, "alpha of CutMix; 0 = off"),
        "mixup_prob": Flag(1.0, PART, "probability of either"),
        "mixup_switch_prob": Flag(0.5, PART, "probability of CutMix where both are on"),
        "mixup_mode": Flag("batch", ("batch", "pair", "elem"), "what shares a draw"),
        "mixup_off_epoch": Flag(0, FROM_0_ON, "epoch from which neither is on; 0 = never"),
        "smoothing": Flag(0.1, BELOW_ONE, "label smoothing; 0 for a --loss of hard labels, unless given"),
        "bce_target_thresh": Flag(None, PART, "threshold of soft targets with --bce-loss"),
        "train_interpolation": Flag(
            "random",
            ("random", "bilinear", "bicubic", "nearest", "lanczos", "hamming", "box", ""),
            "of resizing in training",
        ),
    },
    "timm: run": {
        "device": Flag("auto", str, "cpu, cuda or cuda:N; auto takes a GPU where there is one"),
        "amp_dtype": Flag("float16", ("float16", "bfloat16"), "with --amp"),
        "dist_bn": Flag(
            "reduce", ("reduce", "broadcast", ""), "batch statistics of all ranks after an epoch; empty = each its own"
        ),
        "model_ema_decay": Flag(0.9998, PART, "decay of the averaged model"),
        "seed": Flag(42, SEED, "of everything that is drawn"),
        "worker_seeding": Flag("all", ("all", "part"), "generators that workers seed"),
        "checkpoint_hist": Flag(10, COUNT, "checkpoints that are kept"),
        "output": Flag("", str, "folder of runs; output/train"),
        "experiment": Flag("", str, "folder of this run in it; made of time and model"),
        "eval_metric": Flag(
            "top1",
            ("top1", "top5", "class_error", "loss"),
            "what the best checkpoint is chosen by; class_error is of all classes alike",
        ),
        "wandb_project": Flag(None, str, "with --log-wandb"),
    },
    "timm: switches": {
        "dataset_download": Flag(False, bool, "fetch a torch/, hfds/ or tfds/ data set that is not there"),
        "pretrained": Flag(False, bool, "begin with the model's published weights"),
        "channels_last": Flag(False, bool, "images in channels-last memory layout"),
        "grad_checkpointing": Flag(
            False, bool, "compute activations again in the backward pass: less memory, more time"
        ),
        "fast_norm": Flag(False, bool, "timm's fast normalisation layers"),
        "sched_on_updates": Flag(False, bool, "step the schedule with each update, not each epoch"),
        "warmup_prefix": Flag(False, bool, "the schedule begins after the warm-up"),
        "no_aug": Flag(False, bool, "no augmentation at all, whatever else says"),
        "bce_loss": Flag(False, bool, "binary cross-entropy, with Mixup, CutMix or label smoothing"),
        "bce_sum": Flag(False, bool, "with --bce-loss: sum over classes"),
        "amp": Flag(False, bool, "mixed precision"),
        "no_ddp_bb": Flag(False, bool, "no broadcast of buffers"),
        "sync_bn": Flag(False, bool, "batch normalisation over all ranks"),
        "model_ema": Flag(False, bool, "average the model over steps; the average is evaluated"),
        "model_ema_warmup": Flag(False, bool, "with --model-ema: a shorter average at the beginning"),
        "pin_mem": Flag(False, bool, "page-locked memory"),
        "no_prefetcher": Flag(False, bool, "leave out timm's prefetcher"),
        "log_wandb": Flag(False, bool, "log to Weights & Biases"),
    },
    "timm: lists": {
        "input_size": Flag(None, PIXELS, "channels, height and width; the model's own", 3),
        "mean": Flag(None, ANY, "of the pixels, for each channel; the model's own", "+"),
        "std": Flag(None, ABOVE_0, "of the pixels, for each channel; the model's own", "+"),
        "opt_betas": Flag(None, BELOW_ONE, "of the optimizer; its own", "+"),
        "lr_noise": Flag(None, PART, "epochs of noise on the rate, as parts of the run; none", "+"),
        "decay_milestones": Flag([90, 180, 270], FROM_0_ON, "epochs at which 'multistep' decays", "+"),
        "scale": Flag([0.08, 1.0], ABOVE_0, "part of the image that a random crop covers", "+"),
        "ratio": Flag([3 / 4, 4 / 3], ABOVE_0, "its width by its height", "+"),
        "cutmix_minmax": Flag(None, PART, "bounds of CutMix's patch; turns it on", "+"),
    },
}
SHORT = {"batch_size": "-b", "validation_batch_size": "-vb", "workers": "-j"}
# Arguments that say where and how a run is made, not what is learnt from what; the seed is said apart.
PLACES = frozenset(
    {
        *("config", "mbj_recipe", "data", "data_dir", "dataset_download", "output", "experiment", "resume"),
        *("device", "rank", "local_rank", "distributed", "workers", "pin_mem", "prefetcher"),
        *("no_prefetcher", "validation_batch_size", "checkpoint_hist", "mbj_diagnostics", "log_wandb"),
        *("wandb_project", "compare", "seeds", "seed", "progress", "table"),
    }
)
