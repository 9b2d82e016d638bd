"""BBN against its formulas, image by image, and on models of several families."""

import copy
import math

import pytest
import timm
import torch
from torch import nn

import mbj_plugin.timm  # noqa: F401  registers resnet32_cifar
from benchmarks.rivals.bbn import BilateralBranch, BilateralLoss, bbn_loss, cumulative_alpha, reversed_probs


def resnet(depth=8):
    return timm.create_model("resnet32_cifar", depth=depth, width=4, num_classes=3)


@pytest.fixture(params=[8, 14])
def parts(request):
    """A ResNet as it was, its twin, and the network that they became."""
    torch.manual_seed(0)
    model, twin = resnet(request.param), resnet(request.param)
    return copy.deepcopy(model), copy.deepcopy(twin), BilateralBranch(model, twin)


@pytest.fixture
def images():
    return torch.randn(2, 5, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_alpha_is_the_papers_parabola():
    assert [cumulative_alpha(epoch, 4) for epoch in range(4)] == [1, 1 - 1 / 16, 1 - 4 / 16, 1 - 9 / 16]


def test_the_reversed_sampler_draws_in_proportion_to_n_max_over_n():
    weights = [60 / 60, 60 / 3, 60 / 12]
    assert reversed_probs([60, 3, 12]) == pytest.approx([w / sum(weights) for w in weights])
    assert reversed_probs([1, 3]) == pytest.approx([3 / 4, 1 / 4])
    with pytest.raises(ValueError, match="class 1 has no image"):
        reversed_probs([3, 0, 1])


@pytest.mark.parametrize("alpha", [1.0, 0.3, torch.tensor(0.7)])
def test_logits_mix_the_features_of_the_two_branches(parts, images, alpha):
    """The second branch is a ResNet of its own, with the twin's last block and the first one's other layers."""
    first, twin, model = parts
    second = copy.deepcopy(first)
    second.layer3[-1] = twin.layer3[-1]
    for net in (first, second, model):
        net.eval()
    f_c, f_r = (
        net.forward_head(net.forward_features(x), pre_logits=True)
        for net, x in zip((first, second), images, strict=True)
    )
    logits = model.mixed(*images, alpha)
    dim, a = f_c.shape[1], float(alpha)
    for i in range(5):
        for c in range(3):
            weight = model.fc.weight[c]
            slow = sum(2 * a * weight[d] * f_c[i, d] + 2 * (1 - a) * weight[dim + d] * f_r[i, d] for d in range(dim))
            assert logits[i, c].item() == pytest.approx((slow + model.fc.bias[c]).item(), abs=1e-4)


def test_the_test_is_the_mix_with_alpha_one_half(parts, images):
    model = parts[2].eval()
    model.alpha.fill_(0.1)
    torch.testing.assert_close(model(images[0]), model.mixed(images[0], images[0], 0.5))


def test_in_training_the_second_half_is_of_the_second_branch(parts, images):
    model = parts[2]
    BilateralLoss(model).begin_epoch(1, 2)
    torch.testing.assert_close(model(images.flatten(0, 1)), model.mixed(*images, 0.75))


def test_only_the_last_block_and_the_classifier_are_new(parts):
    whole, _, model = parts
    block = sum(p.numel() for p in whole.layer3[-1].parameters())
    counts = [sum(p.numel() for p in net.parameters()) for net in (whole, model)]
    assert counts[1] == counts[0] + block + whole.num_features * 3
    # Each tensor is saved once, and alpha, which is the epoch's, is not.
    assert "alpha" not in model.state_dict()
    places = [value.data_ptr() for name, value in model.state_dict().items()]
    assert len(places) == len(set(places))


def test_each_batch_is_normalised_alone(parts, images):
    model = parts[2]
    before = model.mixed(images[0], images[1], 1.0)
    torch.testing.assert_close(model.mixed(images[0], 100 * images[1], 1.0), before)


def test_the_loss_weighs_two_cross_entropies(parts):
    logits, labels, others = torch.tensor([[1.0, 0.0, 2.0], [0.5, 1.0, 0.0], [3.0, 1.0, 0.0]]), [0, 1, 0], [2, 2, 1]
    expected = 0.0
    for row, y_c, y_r in zip(logits.tolist(), labels, others, strict=True):
        total = math.log(sum(math.exp(z) for z in row))
        expected += (0.75 * (total - row[y_c]) + 0.25 * (total - row[y_r])) / 3
    assert bbn_loss(logits, torch.tensor(labels), torch.tensor(others), 0.75).item() == pytest.approx(expected)
    loss = BilateralLoss(parts[2])
    assert not loss.state_dict()  # alpha is the epoch's
    loss.begin_epoch(1, 2)
    assert loss(logits, torch.tensor(labels + others)).item() == pytest.approx(expected)


def test_both_branches_learn_where_alpha_lets_them(parts, images):
    model = parts[2]
    labels = torch.arange(5) % 3
    for alpha, silent in ((1.0, 1), (0.5, None)):
        model.zero_grad()
        bbn_loss(model.mixed(*images, alpha), labels, labels, alpha).backward()
        for place, branch in enumerate(model.branches):
            moved = any(p.grad is not None and p.grad.abs().max() > 0 for p in branch.parameters())
            assert moved == (place != silent)
        assert model.model.conv1.weight.grad.abs().max() > 0


def test_compiled_it_is_the_same(parts, images):
    model = parts[2]
    other = copy.deepcopy(model)
    compiled = torch.compile(other, backend="eager")
    for net in (model, other):
        BilateralLoss(net).begin_epoch(1, 2)
    for _ in range(2):
        torch.testing.assert_close(compiled(images.flatten(0, 1)), model(images.flatten(0, 1)))
    torch.testing.assert_close(other.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("resnet18", "layer4.1"),
        ("tf_efficientnet_lite0", "blocks.6.0"),
        ("convnext_atto", "stages.3.blocks.1"),
        ("vit_tiny_patch16_224", "blocks.11"),
        ("swin_tiny_patch4_window7_224", "layers.3.blocks.1"),
    ],
)
def test_families_of_timm(name, place):
    size = {"img_size": 56} if "swin" in name else {"img_size": 32} if "vit" in name else {}
    torch.manual_seed(0)
    plain, twin = (timm.create_model(name, num_classes=3, **size) for _ in range(2))
    block, others = plain.get_submodule(place), twin.get_submodule(place)
    dim = plain.get_classifier().in_features
    model = BilateralBranch(plain, twin)
    assert model.pretrained_cfg is plain.pretrained_cfg  # mean and standard deviation of its images
    assert list(model.branches) == [block, others] and model.fc.in_features == 2 * dim
    x = torch.randn(4, 3, *[56 if "swin" in name else 32] * 2)
    assert model.eval()(x).shape == (4, 3)
    assert model.train()(x).shape == (2, 3)


def test_models_that_have_no_last_block_or_no_linear_classifier():
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r"^BBN doubles a model's last block, but VGG has none of layer4, .*blocks"):
        BilateralBranch(*(timm.create_model("vgg11", num_classes=3) for _ in range(2)))
    nets = [resnet(), resnet()]
    nets[0].fc = nn.Conv2d(16, 3, 1)
    with pytest.raises(ValueError, match=r"^BBN needs a model with one linear classifier, CifarResNet has Conv2d"):
        BilateralBranch(*nets)
