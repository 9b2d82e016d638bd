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
            "also report the baseline; it is trained in a second run if MBJ changes the features",
        ),
        "loss": Flag(
            "ce",
            str,
            f"batch loss, with --mbj or without: {', '.join(LOSSES)}, or module:Class of your own, made as "
            "Class(class_counts) or Class(). 'ce' is the loss that timm's own flags choose; the others take hard "
            "labels, so --smoothing is 0 with them",
        ),
        "seeds": Flag(1, COUNT, "number of runs, each with another seed; reports mean and spread"),
        "table": Flag("text", tuple(TABLES), "format of the printed table"),
        "imbalance_ratio": Flag(
            None,
            Range(1),
            "remove training images until the largest class has this many times the images of the smallest",
        ),
        "sampler": Flag(
            None,
            tuple(SAMPLERS),
            "show all classes equally often, or in proportion to the square root of their number of images; MBJ "
            "and the losses still use the class counts of the data set (default: each image once an epoch)",
        ),
        "val_fraction": Flag(
            None,
            Range(0, BELOW_1, above=True),
            "hold out this part of each class of the training images, and evaluate on it; a class with one image keeps "
            "it for training (default: evaluate on --val-split)",
        ),
        "subset_seed": Flag(0, SEED, "seed that decides which images --imbalance-ratio removes"),
        "crop_pad": Flag(
            None,
            Range(0, 1024, whole=True),
            "pad by this many pixels and crop, instead of timm's random crop (as usual for CIFAR); the other "
            "augmentation flags still apply",
        ),
    },
    "timm: data": {
        "data_dir": Flag(None, str, "folder of the images, with a folder or tar file for each split"),
        "dataset": Flag(
            "", str, "torch/NAME, hfds/NAME, tfds/NAME, wds/NAME or sklearn/digits (default: a folder of images)"
        ),
        "train_split": Flag("train", str, "split, or folder, to train on"),
        "val_split": Flag("validation", str, "split, or folder, to evaluate on"),
        "class_map": Flag("", str, "file of class names and indices"),
        "input_img_mode": Flag(None, str, "Pillow's mode of the images (default: RGB, or L for one channel)"),
        "input_key": Flag(None, str, "key of the images in a Hugging Face data set"),
        "target_key": Flag(None, str, "key of the classes in a Hugging Face data set"),
        "workers": Flag(4, Range(0, 1024, whole=True), "number of processes that load images"),
        "batch_size": Flag(128, COUNT, "number of images in a batch, on each rank"),
        "validation_batch_size": Flag(None, COUNT, "number of images in a batch of evaluation (default: --batch-size)"),
        "epoch_repeats": Flag(0.0, FROM_0, "number of times that a stream is repeated in an epoch"),
    },
    "timm: model": {
        "model": Flag("resnet50", str, "name of the model"),
        "pretrained_path": Flag(None, str, "with --pretrained: use the weights in this file, except the classifier's"),
        "initial_checkpoint": Flag("", str, "file with the initial weights, of a model with the same classes"),
        "resume": Flag("", str, "checkpoint to continue from: OUTPUT/EXPERIMENT/last.pth.tar"),
        "num_classes": Flag(
            None, Range(1, MOST_CLASSES, whole=True), "number of classes (default: that of the images)"
        ),
        "gp": Flag(None, ("fast", "avg", "max", "avgmax", "avgmaxc"), "global pooling"),
        "img_size": Flag(None, PIXELS, "side of the image in pixels"),
        "in_chans": Flag(None, COUNT, "number of channels of the image, 1 or 3"),
        "crop_pct": Flag(None, Range(0, 1, above=True), "part of the image that is used in evaluation"),
        "interpolation": Flag(
            "",
            ("bilinear", "bicubic", "nearest", "lanczos", "hamming", "box", ""),
            "interpolation of resizing in evaluation (default: the model's own)",
        ),
        "grad_accum_steps": Flag(1, COUNT, "number of batches in one optimizer step"),
        "drop": Flag(0.0, BELOW_ONE, "dropout rate"),
        "drop_path": Flag(None, BELOW_ONE, "rate of stochastic depth"),
        "drop_block": Flag(None, BELOW_ONE, "rate of DropBlock"),
        "bn_momentum": Flag(None, PART, "momentum of batch normalisation"),
        "bn_eps": Flag(None, ABOVE_0, "epsilon of batch normalisation"),
        "torchcompile_mode": Flag(None, str, "mode of torch.compile"),
    },
    "timm: optimizer": {
        "opt": Flag("sgd", str, "optimizer; timm's 'sgd' has Nesterov momentum, 'momentum' has plain momentum"),
        "opt_eps": Flag(None, FROM_0, "epsilon of the optimizer (default: its own)"),
        "momentum": Flag(0.9, BELOW_ONE, "momentum of SGD"),
        "weight_decay": Flag(2e-5, FROM_0, "weight decay"),
        "clip_grad": Flag(None, ABOVE_0, "bound of gradient clipping (default: no clipping)"),
        "clip_mode": Flag(
            "norm",
            ("norm", "value", "agc"),
            "what is clipped: the norm of all gradients, each number, or each gradient in proportion to its weight",
        ),
        "layer_decay": Flag(
            None, ABOVE_0, "factor of the learning rate from one layer to the layer below (default: none)"
        ),
    },
    "timm: schedule": {
        "sched": Flag(
            "cosine",
            ("cosine", "step", "multistep", "poly", "tanh", "constant", "rsqrt", "wsd", "none"),
            "schedule of the learning rate",
        ),
        "lr": Flag(None, ABOVE_0, "learning rate (default: from --lr-base and the batch size)"),
        "lr_base": Flag(0.1, ABOVE_0, "learning rate for a batch of --lr-base-size images"),
        "lr_base_size": Flag(256, COUNT, "number of images, see --lr-base"),
        "lr_base_scale": Flag(
            "", ("linear", "sqrt", ""), "how the learning rate grows with the batch (default: depends on the optimizer)"
        ),
        "lr_noise_pct": Flag(0.67, FROM_0, "bound of the noise on the learning rate"),
        "lr_noise_std": Flag(1.0, FROM_0, "standard deviation of the noise on the learning rate"),
        "lr_cycle_mul": Flag(1.0, ABOVE_0, "factor from the length of one cycle to the next"),
        "lr_cycle_decay": Flag(0.5, ABOVE_0, "factor from the learning rate of one cycle to the next"),
        "lr_cycle_limit": Flag(1, COUNT, "number of cycles"),
        "lr_k_decay": Flag(1.0, ABOVE_0, "k-decay of cosine and poly"),
        "warmup_lr": Flag(1e-5, FROM_0, "learning rate at the start of the warm-up"),
        "min_lr": Flag(0.0, FROM_0, "lowest learning rate"),
        "epochs": Flag(300, COUNT, "number of epochs"),
        "decay_epochs": Flag(90.0, ABOVE_0, "number of epochs between the decays of 'step'"),
        "warmup_epochs": Flag(5, FROM_0_ON, "number of epochs of warm-up"),
        "cooldown_epochs": Flag(0, FROM_0_ON, "number of epochs at the lowest learning rate, after the others"),
        "decay_rate": Flag(0.1, ABOVE_0, "factor of each decay"),
    },
    "timm: augmentation": {
        "train_crop_mode": Flag(None, ("rrc", "rkrc", "rkrr"), "crop in training (default: rrc)"),
        "hflip": Flag(0.5, PART, "probability of a horizontal flip"),
        "vflip": Flag(0.0, PART, "probability of a vertical flip"),
        "color_jitter": Flag(0.4, FROM_0, "strength of colour jitter (default: %(default)s, and 0 with --crop-pad)"),
        "color_jitter_prob": Flag(None, PART, "probability of colour jitter (default: 1)"),
        "grayscale_prob": Flag(None, PART, "probability of a grey image"),
        "gaussian_blur_prob": Flag(None, PART, "probability of blur"),
        "aa": Flag(
            None,
            str,
            "AutoAugment policy, such as rand-m9-mstd0.5, which replaces colour jitter; with --crop-pad "
            "'cifar10', which is CIFAR-10's policy and Cutout",
        ),
        "reprob": Flag(0.0, PART, "probability of random erasing"),
        "remode": Flag("pixel", ("const", "rand", "pixel"), "how random erasing fills the patch"),
        "recount": Flag(1, COUNT, "number of patches that random erasing fills"),
        "mixup": Flag(0.0, FROM_0, "alpha of Mixup; 0 turns it off"),
        "cutmix": Flag(0.0, FROM_0, "alpha of CutMix; 0 turns it off"),
        "mixup_prob": Flag(1.0, PART, "probability of Mixup or CutMix"),
        "mixup_switch_prob": Flag(0.5, PART, "probability of CutMix if both are on"),
        "mixup_mode": Flag(
            "batch", ("batch", "pair", "elem"), "whether one mixing ratio is chosen for each batch, pair or image"
        ),
        "mixup_off_epoch": Flag(0, FROM_0_ON, "epoch from which Mixup and CutMix are off; 0 = never"),
        "smoothing": Flag(0.1, BELOW_ONE, "label smoothing (default: %(default)s, and 0 with a --loss of hard labels)"),
        "bce_target_thresh": Flag(None, PART, "threshold of soft targets with --bce-loss"),
        "train_interpolation": Flag(
            "random",
            ("random", "bilinear", "bicubic", "nearest", "lanczos", "hamming", "box", ""),
            "interpolation of resizing in training",
        ),
    },
    "timm: run": {
        "device": Flag("auto", str, "cpu, cuda or cuda:N; auto uses a GPU if there is one"),
        "amp_dtype": Flag("float16", ("float16", "bfloat16"), "number format of --amp"),
        "dist_bn": Flag(
            "reduce",
            ("reduce", "broadcast", ""),
            "how the ranks share the statistics of batch normalisation after an epoch; empty = not at all",
        ),
        "model_ema_decay": Flag(0.9998, PART, "decay of the averaged model"),
        "seed": Flag(42, SEED, "seed of all random choices"),
        "worker_seeding": Flag("all", ("all", "part"), "which random generators the loading processes seed"),
        "checkpoint_hist": Flag(10, COUNT, "number of checkpoints to keep"),
        "output": Flag("", str, "folder for runs (default: output/train)"),
        "experiment": Flag("", str, "folder of this run in --output (default: its time and model)"),
        "eval_metric": Flag(
            "top1",
            ("top1", "top5", "class_error", "loss"),
            "what the best checkpoint is chosen by; class_error is the mean error of the classes",
        ),
        "wandb_project": Flag(None, str, "project of --log-wandb"),
    },
    "timm: switches": {
        "dataset_download": Flag(False, bool, "download a torch/, hfds/ or tfds/ data set if it is missing"),
        "pretrained": Flag(False, bool, "start with the model's published weights"),
        "channels_last": Flag(False, bool, "use the channels-last memory layout"),
        "grad_checkpointing": Flag(
            False, bool, "compute activations again in the backward pass, which needs less memory and more time"
        ),
        "fast_norm": Flag(False, bool, "use timm's fast normalisation layers"),
        "sched_on_updates": Flag(False, bool, "change the learning rate after each update instead of each epoch"),
        "warmup_prefix": Flag(False, bool, "start the schedule after the warm-up"),
        "no_aug": Flag(False, bool, "no augmentation at all, whatever the other flags say"),
        "bce_loss": Flag(False, bool, "binary cross-entropy, with Mixup, CutMix or label smoothing"),
        "bce_sum": Flag(False, bool, "with --bce-loss: sum over the classes instead of their mean"),
        "amp": Flag(False, bool, "train in mixed precision"),
        "no_ddp_bb": Flag(False, bool, "do not broadcast buffers between ranks"),
        "sync_bn": Flag(False, bool, "synchronise batch normalisation over all ranks"),
        "model_ema": Flag(False, bool, "average the weights over the steps, and evaluate the average"),
        "model_ema_warmup": Flag(False, bool, "with --model-ema: average over fewer steps at the beginning"),
        "pin_mem": Flag(False, bool, "load into page-locked memory"),
        "no_prefetcher": Flag(False, bool, "do not use timm's prefetcher"),
        "log_wandb": Flag(False, bool, "log to Weights & Biases"),
    },
    "timm: lists": {
        "input_size": Flag(None, PIXELS, "channels, height and width of the images (default: the model's own)", 3),
        "mean": Flag(None, ANY, "mean of the pixels of each channel (default: the model's own)", "+"),
        "std": Flag(None, ABOVE_0, "standard deviation of the pixels of each channel (default: the model's own)", "+"),
        "opt_betas": Flag(None, BELOW_ONE, "betas of the optimizer (default: its own)", "+"),
        "lr_noise": Flag(
            None, PART, "parts of the run between which noise is added to the learning rate (default: none)", "+"
        ),
        "decay_milestones": Flag([90, 180, 270], FROM_0_ON, "epochs at which 'multistep' decays", "+"),
        "scale": Flag([0.08, 1.0], ABOVE_0, "part of the image that a random crop covers", "+"),
        "ratio": Flag([3 / 4, 4 / 3], ABOVE_0, "ratio of width to height of a random crop", "+"),
        "cutmix_minmax": Flag(None, PART, "bounds of the size of CutMix's patch; this turns CutMix on", "+"),
    },
}
SHORT = {"batch_size": "-b", "validation_batch_size": "-vb", "workers": "-j"}
# Arguments that say where and how a run is made, not what is learnt from what; the seed is said apart.
PLACES = frozenset(
    {
        *("config", "mbj_recipe", "data", "data_dir", "dataset_download", "output", "experiment", "resume"),
        *("device", "rank", "local_rank", "distributed", "workers", "pin_mem", "prefetcher"),
        *("no_prefetcher", "validation_batch_size", "checkpoint_hist", "log_wandb"),
        *("wandb_project", "compare", "seeds", "seed", "progress", "table"),
    }
)
