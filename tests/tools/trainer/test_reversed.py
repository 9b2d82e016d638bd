"""--loss bbn: the reversed sampler, the loader of pairs, and a run against a loop of plain PyTorch."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from plain_loop import BATCH, EPOCHS, evaluate, new_model, new_optimizer, normalised, read_images
from test_reference_loop import assert_same_run, run
from test_train import assert_same, fails
from test_train import run as train
from timm import create_model
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from mbj_plugin.batch_losses.bbn import BilateralBranch, BilateralLoss
from mbj_plugin.tools.trainer import build
from mbj_plugin.tools.trainer.args import parse_args
from mbj_plugin.tools.trainer.reversed import PairedLoader, ReversedDraws


class Labelled(Dataset):
    """Images that are their own numbers."""

    targets = (2, 0, 0, 1, 0, 2, 0, 0, 0)
    transform = None

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return index, self.targets[index]


def test_rare_classes_are_drawn_in_proportion_to_their_rarity():
    draws = ReversedDraws(Labelled())
    assert len(draws) == 9
    torch.manual_seed(0)
    drawn = [draws[0] for _ in range(9000)]
    assert all(Labelled.targets[image] == label for image, label in drawn)
    images = np.bincount([image for image, _ in drawn], minlength=9) / 9000
    weights = {0: 6 / 6, 1: 6 / 1, 2: 6 / 2}  # N_max / N_c
    expected = [weights[c] / 10 / Labelled.targets.count(c) for c in Labelled.targets]
    assert images == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize(("number", "image"), [(0.0, 0), (0.149, 0), (0.151, 1), (1 - 2**-53, 8)])
def test_the_image_of_a_number(monkeypatch, number, image):
    draw = torch.tensor(number, dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *size, dtype: draw.to(dtype))
    assert ReversedDraws(Labelled())[5] == (image, Labelled.targets[image])


def test_what_loaders_set_reaches_the_images():
    images = Labelled()
    draws = ReversedDraws(images)
    draws.transform = "timm's"
    assert images.transform == draws.transform == "timm's"


def test_a_stream_has_no_images_of_a_class():
    class Stream(IterableDataset):
        targets = (0, 1)

        def __iter__(self):
            yield from ()

    with pytest.raises(ValueError, match="^--loss bbn asks for images by their class, which .* streams cannot give$"):
        ReversedDraws(Stream())


def test_pairs_of_batches():
    first, second = [(torch.tensor([1, 2]), torch.tensor([3, 4]))], [(torch.tensor([5, 6]), torch.tensor([7, 8]))]
    ((images, labels),) = PairedLoader(first, second)
    assert images.tolist() == [1, 2, 5, 6] and labels.tolist() == [3, 4, 7, 8]
    loader = DataLoader(Labelled(), 4)
    pairs = PairedLoader(loader, DataLoader(ReversedDraws(Labelled()), 4))
    assert len(pairs) == 3 and pairs.sampler is loader.sampler and pairs.dataset is loader.dataset
    with pytest.raises(ValueError, match="longer|shorter"):
        list(PairedLoader(first, second * 2))


class PlainDraws(Dataset):
    """Images by the sum of the probabilities of those before them."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels
        counts = torch.bincount(labels).tolist()
        share = [1 / n / sum(1 / m for m in counts) for n in counts]
        self.probs = [share[c] / counts[c] for c in labels.tolist()]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        number, total = torch.rand((), dtype=torch.float64).item(), 0.0
        for image, prob in enumerate(self.probs):
            total += prob
            if number < total:
                return self.images[image], self.labels[image]
        raise AssertionError


class PlainBranches(nn.Module):
    """Two networks that share all but their last blocks, and a classifier; called, the test's logits."""

    def __init__(self):
        super().__init__()
        self.net = new_model()
        self.other = create_model("resnet32_cifar", num_classes=3, depth=8, width=4).layer3[-1]
        self.fc = nn.Linear(2 * self.net.fc.in_features, 3)
        self.net.fc = nn.Identity()

    def features(self, x, last):
        x = F.relu(self.net.bn1(self.net.conv1(x)))
        x = self.net.layer2(self.net.layer1(x))
        for block in self.net.layer3[:-1]:
            x = block(x)
        return last(x).mean((2, 3))

    def logits(self, x_c, x_r, alpha):
        f_c, f_r = self.features(x_c, self.net.layer3[-1]), self.features(x_r, self.other)
        return self.fc(torch.cat([2 * alpha * f_c, 2 * (1 - alpha) * f_r], 1))

    def forward(self, x):
        return self.logits(x, x, 0.5)


def lazily(loader):
    """As timm's prefetcher, which asks its loader for nothing before the first batch."""
    yield from loader


def plain_run(folder):
    model = PlainBranches()
    optimizer = new_optimizer(model)
    images, labels = read_images(folder / "train")
    loader = DataLoader(TensorDataset(images, labels), BATCH, shuffle=True, drop_last=True)
    other = DataLoader(PlainDraws(images, labels), BATCH, shuffle=True, drop_last=True)
    evaluation = DataLoader(TensorDataset(*read_images(folder / "validation")), BATCH)
    for epoch in range(EPOCHS):
        model.train()
        alpha, losses = 1 - (epoch / EPOCHS) ** 2, []
        for (x_c, y_c), (x_r, y_r) in zip(lazily(loader), lazily(other), strict=True):
            logits = model.logits(normalised(x_c), normalised(x_r), alpha)
            loss = alpha * F.cross_entropy(logits, y_c) + (1 - alpha) * F.cross_entropy(logits, y_r)
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        eval_loss, wrong = evaluate(model, evaluation, torch.contiguous_format, torch.no_grad)
    weights = {}
    for name, value in model.state_dict().items():
        name = name.replace("net.layer3.0.", "model.layer3.0.0.").replace("other.", "model.layer3.0.1.")
        weights[name.replace("net.", "model.")] = value
    mean = sum(losses) / len(losses)
    return {"weights": weights, "averaged": None, "train_loss": mean, "eval_loss": eval_loss, "wrong": wrong}


def test_a_run_is_a_plain_loop_over_two_batches(tmp_path, image_folder):
    found = run(tmp_path, image_folder, "--loss", "bbn")
    expected = plain_run(image_folder)
    assert found[1]["state_dict"].keys() == expected["weights"].keys()
    assert_same_run(found, expected)


def test_it_resumes(tmp_path, tiny):
    flags = [*tiny, "--loss", "bbn"]
    _, whole = train(tmp_path, *flags, name="whole")
    train(tmp_path, *flags, "--epochs", "1", name="half")
    last = str(tmp_path / "half/last.pth.tar")
    _, resumed = train(tmp_path, *flags, "--resume", last, name="half")
    assert_same(whole, resumed, ("state_dict", "optimizer"))
    assert "trained by --loss bbn, this run asks for ce" in fails(*tiny, "--resume", last)


def test_its_parts(image_folder):
    flags = [
        "--model",
        "resnet32_cifar",
        "--model-kwargs",
        "depth=8",
        "width=4",
        "--num-classes",
        "3",
        "--head-init-bias",
        "0.5",
        "--loss",
        "bbn",
    ]
    args = parse_args([str(image_folder), *flags, "-b", "8", "-j", "0", "--device", "cpu"])
    device = build.init_device(args)
    datasets = build.make_datasets(args)
    model = build.make_model(args, device)
    assert isinstance(model, BilateralBranch) and (model.fc.bias == 0.5).all()
    data = build.make_loaders(args, model, datasets, device)
    images, labels = next(iter(data.train))
    assert len(images) == len(labels) == 16 and len(data.train) == 5 and data.train.dataset is datasets[0]
    loss = build.make_batch_loss(args, model, data.counts, 0)
    assert isinstance(loss, BilateralLoss) and loss.alpha is model.alpha
    # Padded crops take the place of timm's random ones in both.
    args.crop_pad = 2
    pair = build.make_loaders(args, model, datasets, device).train
    assert " RandomCrop(" in str(datasets[0].transform)
    assert pair._other.dataset.dataset is datasets[0] and pair._other.dataset.transform is datasets[0].transform


def test_an_averaged_copy_has_branches_of_its_own():
    nets = [create_model("resnet32_cifar", depth=8, width=4, num_classes=3) for _ in range(2)]
    model = BilateralBranch(*nets)
    other = copy.deepcopy(model)
    assert other.branches is not model.branches and other.branches is other.model.layer3[0]
