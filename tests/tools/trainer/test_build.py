"""The parts of a run one by one: what timm's factories are given, and what is said of values that they refuse."""

import json
from argparse import Namespace
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn

from benchmarks.rivals.ldam import CosineLinear, LDAMLoss
from mbj_plugin.batch_losses import BalancedSoftmaxLoss
from mbj_plugin.tools.trainer import build
from mbj_plugin.tools.trainer.args import parse_args

CPU = torch.device("cpu")


def arguments(*flags, **values):
    args = parse_args(["--no-progress", *flags])
    given = {"num_classes": 3, "world_size": 1, "rank": 0, "distributed": False, "device": "cpu", **values}
    return Namespace(**vars(args) | given)


@pytest.mark.parametrize("cuda", [True, False])
def test_the_device(monkeypatch, cuda):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(build.utils, "init_distributed_device", lambda args: ("joined", args.device))
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(allow_tf32=False))
    monkeypatch.setattr(torch.backends, "cudnn", SimpleNamespace(benchmark=False))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert build.init_device(Namespace(device="auto")) == ("joined", "cuda" if cuda else "cpu")
    assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.benchmark == cuda
    assert build.init_device(Namespace(device="cpu")) == ("joined", "cpu")
    assert build.init_device(Namespace(device="cpu", world_size=1)) == CPU  # joined already
    if cuda:
        assert build.init_device(Namespace(device="cuda:1")) == ("joined", "cuda:1")
    else:
        with pytest.raises(ValueError, match="^--device cuda:1: torch .* sees no CUDA"):
            build.init_device(Namespace(device="cuda:1"))


def test_the_model_is_what_the_flags_say(monkeypatch):
    asked = []
    monkeypatch.setattr(build, "create_model", lambda name, **kwargs: asked.append((name, kwargs)) or nn.Linear(2, 3))
    monkeypatch.setattr(build, "set_fast_norm", lambda: asked.append("fast norm"))
    flags = "--model resnet18 --model-kwargs depth=8 --drop 0.1 --drop-path 0.2 --drop-block 0.3 --gp max"
    flags += " --bn-momentum 0.4 --bn-eps 0.5 --in-chans 1 --fast-norm"
    args = arguments(*flags.split(), pretrained=True)
    build.make_model(args, CPU)
    expected = {
        **{"pretrained": True, "in_chans": 1, "num_classes": 3, "drop_rate": 0.1, "drop_path_rate": 0.2},
        **{"drop_block_rate": 0.3, "global_pool": "max", "bn_momentum": 0.4, "bn_eps": 0.5, "checkpoint_path": ""},
        "depth": 8,
    }
    assert asked == ["fast norm", ("resnet18", expected)]


def test_weights_of_a_file(monkeypatch, tmp_path):
    asked, path = [], tmp_path / "weights.pth"
    monkeypatch.setattr(build, "create_model", lambda name, **kwargs: asked.append(kwargs) or nn.Linear(2, 3))
    for flag, said in (("initial_checkpoint", "--initial-checkpoint"), ("pretrained_path", "--pretrained-path")):
        with pytest.raises(ValueError, match=f"^there is no file {path}, which {said} names$"):
            build.make_model(arguments(**{flag: str(path)}), CPU)
    path.write_text("")
    build.make_model(arguments(initial_checkpoint=str(path)), CPU)
    build.make_model(arguments(pretrained_path=str(path)), CPU)
    assert asked[0]["checkpoint_path"] == str(path) and "pretrained_cfg_overlay" not in asked[0]
    assert asked[1]["pretrained_cfg_overlay"] == {"file": str(path), "num_classes": -1}
    assert asked[1]["checkpoint_path"] == ""


def test_weights_that_cannot_be_downloaded(monkeypatch):
    def no_network(*args, **kwargs):
        raise FileNotFoundError("Please check your connection.")

    monkeypatch.setattr(build, "create_model", no_network)
    for model, page in (("resnet18", "huggingface.co/timm/resnet18.a1_in1k"), ("resnet32_cifar", "the model's page")):
        with pytest.raises(ValueError, match=f"--model {model}: .*connection.*from {page}, and add --pretrained-path"):
            build.make_model(arguments(model=model, pretrained=True), CPU)


def test_images_of_a_size_that_the_model_cannot_take():
    model, name = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=3), "vit_tiny_patch16_224"
    build.check_input(arguments(model=name, input_size=[3, 224, 224]), model, CPU)
    with pytest.raises(ValueError, match=f"{name} cannot take images of 3 x 64 x 64 .*img_size=64"):
        build.check_input(arguments(model=name, input_size=[3, 64, 64]), model, CPU)
    assert model.training


def test_names_of_models(monkeypatch):
    monkeypatch.setattr(build, "create_model", lambda name, **kwargs: nn.Linear(2, 3))
    for name in ("resnet18", "resnet18.a1_in1k", "hf-hub:timm/resnet18"):
        build.make_model(arguments(model=name), CPU)
    with pytest.raises(ValueError, match=r"^timm has no model 'zzzzzzzz'$"):
        build.make_model(arguments(model="zzzzzzzz"), CPU)
    with pytest.raises(ValueError, match="'resnet18x', did you mean 'resnet18'"):
        build.make_model(arguments(model="resnet18x"), CPU)


def test_a_loss_can_adapt_the_model():
    model = build.make_model(arguments(loss="benchmarks.rivals.ldam:LDAMLoss"), CPU)
    assert isinstance(model.get_classifier(), CosineLinear)


@pytest.mark.parametrize(("ranks", "sync"), [(2, True), (2, False), (1, True)])
def test_batch_norm_over_ranks_and_layout(ranks, sync):
    args = arguments(world_size=ranks, sync_bn=sync, channels_last=sync)
    model = build.make_model(args, torch.device("meta"))
    over_ranks = any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    assert over_ranks == (ranks > 1 and sync) and args.dist_bn == ("" if over_ranks else "reduce")
    weight = next(p for p in model.parameters() if p.ndim == 4 and p.shape[1] > 1)
    assert weight.device.type == "meta" and weight.is_contiguous(memory_format=torch.channels_last) == sync


def test_a_pretrained_file_that_fits_no_tensor(tmp_path):
    path = tmp_path / "weights.pth"
    flags = ("--model", "resnet32_cifar", "--model-kwargs", "depth=8", "width=4", "--pretrained")
    flags += ("--pretrained-path", str(path))
    torch.manual_seed(0)
    other = timm.create_model("resnet32_cifar", depth=8, width=4, in_chans=1, num_classes=7).state_dict()
    torch.save(other, path)
    torch.manual_seed(1)
    model, state = build.make_model(arguments(*flags), CPU), torch.get_rng_state()
    differ = [name for name, value in model.state_dict().items() if not torch.equal(value, other[name])]
    assert differ == ["fc.weight", "fc.bias"]
    torch.manual_seed(1)
    build._create(arguments(*flags))
    assert torch.equal(torch.get_rng_state(), state)
    torch.save({f"backbone.{name}": value for name, value in other.items()}, path)
    with pytest.raises(ValueError, match=f"--pretrained-path {path}: none of its tensors fits resnet32_cifar"):
        build.make_model(arguments(*flags), CPU)


def test_gradient_checkpointing():
    with pytest.raises(ValueError, match="^resnet32_cifar has no gradient checkpointing: leave out --grad-checkpoint"):
        build.make_model(arguments(grad_checkpointing=True), CPU)
    args = arguments(model="resnet18", model_kwargs={}, grad_checkpointing=True)
    assert build.make_model(args, CPU).grad_checkpointing


def test_mixed_precision(monkeypatch):
    monkeypatch.setattr(build, "NativeScaler", lambda device: ("scaler", device))
    assert build.make_amp(arguments(amp=False), CPU) == (nullcontext, None)
    for device, name, scaler in (
        ("cpu", "bfloat16", None),
        ("cpu", "float16", None),
        ("cuda", "bfloat16", None),
        ("cuda", "float16", ("scaler", "cuda")),
    ):
        autocast, given = build.make_amp(arguments(amp=True, amp_dtype=name), torch.device(device))
        assert given == scaler
        assert autocast.keywords == {"device_type": device, "dtype": getattr(torch, name)}
        assert autocast.func is torch.autocast


def test_data_sets(monkeypatch, tmp_path):
    asked = []
    sets = {"train": SimpleNamespace(targets=[0, 1, 4]), "held out": SimpleNamespace(targets=[0])}
    monkeypatch.setattr(
        build, "make_dataset", lambda args, split, training, mode: asked.append((split, training, mode)) or sets[split]
    )
    monkeypatch.setattr(build, "check_same_classes", lambda *both: asked.append(both))
    values = {"val_split": "held out", "num_classes": None, "imbalance_ratio": None}
    args = arguments(**values)
    assert build.make_datasets(args) == tuple(sets.values())
    assert asked == [("train", True, "L"), ("held out", False, "L"), tuple(sets.values())]
    assert args.num_classes == 5
    (tmp_path / "counts.json").write_text(json.dumps([3, 2, 2, 1, 1, 1, 1]))
    for more, number in (({"mbj_class_counts": str(tmp_path / "counts.json")}, 7), ({"num_classes": 9}, 9)):
        args = arguments(**values | more)
        build.make_datasets(args)
        assert args.num_classes == number


def batch_loss(start=0, **values):
    return build.make_batch_loss(arguments(**values), np.array([5, 3, 1]), start)


def test_the_loss_of_hard_labels_is_told_the_classes():
    assert type(batch_loss(loss="balanced_softmax")) is BalancedSoftmaxLoss
    loss = batch_loss(7, loss="benchmarks.rivals.ldam:LDAMLoss")
    assert type(loss) is LDAMLoss and loss.start == 7
    logits = torch.tensor([[1.0, 2, 3]])
    expected = -(logits + torch.tensor([5.0, 3, 1]).log()).log_softmax(1)[0, 1]
    assert batch_loss(loss="balanced_softmax")(logits, torch.tensor([1])).item() == pytest.approx(expected.item())


def test_the_loss_that_train_py_takes():
    assert type(batch_loss()) is nn.CrossEntropyLoss
    smoothed = batch_loss(smoothing=0.2)
    assert type(smoothed) is LabelSmoothingCrossEntropy and smoothed.smoothing == 0.2
    assert type(batch_loss(mixup=0.2)) is type(batch_loss(mixup=0.2, smoothing=0.1)) is SoftTargetCrossEntropy
    assert type(batch_loss(bce_loss=True)) is nn.CrossEntropyLoss
    for mixes, smoothing in (({}, 0.2), ({"mixup": 0.2}, 0.0)):
        loss = batch_loss(bce_loss=True, bce_target_thresh=0.3, bce_sum=True, smoothing=0.2, **mixes)
        assert type(loss) is BinaryCrossEntropy
        assert (loss.smoothing, loss.target_threshold, loss.sum_classes) == (smoothing, 0.3, True)


@pytest.mark.parametrize("soft", [{"smoothing": 0.1}, {"bce_loss": True}, {"mixup": 0.2}, {"cutmix": 0.2}])
def test_soft_labels_and_losses_of_hard_ones(soft):
    what = "takes hard labels: add --smoothing 0, leave out Mixup, CutMix and --bce-loss$"
    with pytest.raises(ValueError, match=f"^--loss focal {what}"):
        batch_loss(loss="focal", **soft)
    balanced = {"mbj_classifier_loss": "balanced_softmax"}
    with pytest.raises(ValueError, match=rf"^--mbj-classifier-loss balanced_softmax \(--mbj-recipe balanced\) {what}"):
        batch_loss(mbj=True, **balanced, **soft)
    batch_loss(mbj=False, **balanced, **soft), batch_loss(mbj=True, **soft)
    assert type(batch_loss(mbj=True, **balanced)) is nn.CrossEntropyLoss


@pytest.mark.parametrize(
    ("opt", "scale", "rate", "taken"),
    [
        ("sgd", "", 1.2, "linear"),
        ("AdamW", "", 0.1 * 12**0.5, "sqrt"),
        ("lamb", "", 0.1 * 12**0.5, "sqrt"),
        ("adamw", "linear", 1.2, "linear"),
        ("sgd", "sqrt", 0.1 * 12**0.5, "sqrt"),
    ],
)
def test_the_rate_grows_with_the_global_batch(opt, scale, rate, taken):
    args = Namespace(batch_size=8, world_size=3, grad_accum_steps=4, lr_base_size=8, lr_base=0.1)
    args.opt, args.lr_base_scale = opt, scale
    assert build.scaled_lr(args) == pytest.approx(rate)
    assert args.lr_base_scale == taken
