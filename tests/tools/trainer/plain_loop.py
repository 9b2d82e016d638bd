"""The training loop written out in plain PyTorch: no task, scheduler, loader or helper of timm's or ours.

It knows what timm's train.py does with a seed: model, then for each epoch the shuffled training images and the
evaluation images, all from the global generators.
"""

import dataclasses
import random
from collections.abc import Callable

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

BATCH, EPOCHS, LR, MOMENTUM, DECAY = 8, 2, 0.05, 0.9, 1e-2
MEAN, STD = 0.5, 0.25


@dataclasses.dataclass
class Recipe:
    """What one run does besides SGD."""

    accumulate: int = 1
    clip: Callable | None = None  # of the list of parameters, in place
    ema_decay: Callable | None = None  # of the number of updates, counted from 1
    mixup: float = 0.0
    mixup_epochs: int = EPOCHS
    rounds: bool = True  # timm's prefetcher mixes images of 8 bits where it collates them
    smoothing: float = 0.0
    bf16: bool = False
    channels_last: bool = False
    rate: Callable = lambda update, epoch: LR


def read_images(folder):
    """(N, 3, H, W) uint8 images and (N,) labels, by class and number."""
    paths = sorted(folder.glob("class*/*.png"), key=lambda path: (path.parent.name, int(path.stem)))
    images = np.stack([np.asarray(Image.open(path)) for path in paths]).transpose(0, 3, 1, 2)
    return torch.from_numpy(images), torch.tensor([int(path.parent.name.removeprefix("class")) for path in paths])


def normalised(images, prefetched=True):
    """timm's prefetcher normalises numbers up to 255, torchvision's transform numbers up to 1."""
    return (images.float() - 255 * MEAN) / (255 * STD) if prefetched else (images.float() / 255 - MEAN) / STD


def soft(labels, smoothing):
    return F.one_hot(labels, 3) * (1 - smoothing) + smoothing / 3


def mix(images, labels, recipe, on):
    """Mixup of a batch with itself reversed (Zhang et al., 2018)."""
    share = 1.0
    if on and np.random.rand() < 1.0:  # timm's draw of whether to mix at all
        share = float(np.random.beta(recipe.mixup, recipe.mixup))
    targets = soft(labels, recipe.smoothing)
    targets = targets * share + targets.flip(0) * (1 - share)
    if share == 1:
        return normalised(images, recipe.rounds), targets
    if recipe.rounds:
        mixed = (images.float() * np.float32(share) + images.flip(0).float() * np.float32(1 - share)).round()
        return normalised(mixed), targets
    images = normalised(images, prefetched=False)
    return images * share + images.flip(0) * (1 - share), targets


def new_model(name="resnet32_cifar", **kwargs):
    random.seed(42)
    np.random.seed(42)
    torch.manual_seed(42)
    return timm.create_model(name, num_classes=3, **(kwargs or {"depth": 8, "width": 4}))


def new_optimizer(model):
    """Momentum SGD; what is no matrix does not decay, as in timm."""
    groups = [[p for p in model.parameters() if p.ndim <= 1], [p for p in model.parameters() if p.ndim > 1]]
    decays = [0.0, DECAY]
    groups = [{"params": group, "weight_decay": decay} for group, decay in zip(groups, decays, strict=True)]
    return torch.optim.SGD(groups, lr=LR, momentum=MOMENTUM)


def evaluate(model, loader, layout, autocast):
    """Mean loss, and the errors of each class."""
    model.eval()
    losses, wrong = 0.0, [0, 0, 0]
    with torch.no_grad():
        for images, labels in loader:
            with autocast():
                features = model.forward_features(normalised(images).contiguous(memory_format=layout))
                features = model.forward_head(features, pre_logits=True)
            logits = model.fc(features.float())
            losses += F.cross_entropy(logits.double(), labels, reduction="sum").item()
            for label, guess in zip(labels.tolist(), logits.argmax(1).tolist(), strict=True):
                wrong[label] += label != guess
    return losses / len(loader.dataset), wrong


def train(folder, recipe):
    """The run; a dict of "weights", "averaged", "train_loss" (of the last epoch), "eval_loss" and "wrong"."""
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format

    def autocast():
        return torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16)

    model = new_model().to(memory_format=layout)
    optimizer = new_optimizer(model)
    loader = DataLoader(TensorDataset(*read_images(folder / "train")), BATCH, shuffle=True, drop_last=True)
    evaluation = DataLoader(TensorDataset(*read_images(folder / "validation")), BATCH)
    averaged = {name: value.clone() for name, value in model.state_dict().items()}
    update = 0
    for epoch in range(EPOCHS):
        model.train()
        pairs, losses = list(loader), []
        for first in range(0, len(pairs), recipe.accumulate):
            window = pairs[first : first + recipe.accumulate]
            optimizer.zero_grad()
            for images, labels in window:
                if recipe.mixup:
                    images, targets = mix(images, labels, recipe, epoch < recipe.mixup_epochs)
                else:
                    images, targets = normalised(images), soft(labels, recipe.smoothing)
                with autocast():
                    logits = model(images.contiguous(memory_format=layout))
                loss = -(targets * F.log_softmax(logits.float(), 1)).sum(1).mean()
                losses.append(loss.item())
                (loss / len(window)).backward()
            if recipe.clip is not None:
                recipe.clip(list(model.parameters()))
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(update, epoch)
            optimizer.step()
            update += 1
            if recipe.ema_decay is not None:
                share = recipe.ema_decay(update)
                for name, value in model.state_dict().items():
                    kept = averaged[name] * share + value * (1 - share)
                    averaged[name] = kept if value.is_floating_point() else value.clone()
        eval_loss, wrong = evaluate(model, evaluation, layout, autocast)
        if recipe.ema_decay is not None:
            mean = new_mean(averaged, layout)
            eval_loss, wrong = evaluate(mean, evaluation, layout, autocast)
    return {
        "weights": model.state_dict(),
        "averaged": averaged if recipe.ema_decay is not None else None,
        "train_loss": sum(losses) / len(losses),
        "eval_loss": eval_loss,
        "wrong": wrong,
    }


def new_mean(weights, layout):
    """A model with these weights, made without touching the generators."""
    state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    model = new_model()
    model.load_state_dict(weights)
    torch.set_rng_state(state[0]), np.random.set_state(state[1]), random.setstate(state[2])
    return model.to(memory_format=layout)
