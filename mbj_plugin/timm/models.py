"""ResNet-32 for 32 x 32 images, the backbone of the paper's CIFAR experiments, in timm's model registry."""

# Annotations are objects here, no texts: TorchScript reads those of FX's graphs.
import torch
import torch.nn.functional as F
from timm.layers import create_classifier
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

# The name under which timm's registry looks for them.
default_cfgs = generate_default_cfgs(
    {
        "resnet32_cifar.untrained": {
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "pool_size": (8, 8),
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "mean": (0.4914, 0.4822, 0.4465),  # CIFAR-10, train
            "std": (0.2470, 0.2435, 0.2616),
            "first_conv": "conv1",
            "classifier": "fc",
        }
    }
)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with a parameter-free shortcut: subsampled and zero-padded ("option A")."""

    def __init__(self, in_chs: int, out_chs: int, stride: int) -> None:
        super().__init__()
        self.stride, self.padding = stride, out_chs - in_chs
        self.conv1 = nn.Conv2d(in_chs, out_chs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_chs)
        self.conv2 = nn.Conv2d(out_chs, out_chs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_chs)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.stride > 1 or self.padding:
            before = self.padding // 2
            # A pool of one pixel is x[:, :, ::stride, ::stride], and FX's graphs of it can be scripted.
            shortcut = F.pad(F.avg_pool2d(x, 1, self.stride), (0, 0, 0, 0, before, self.padding - before))
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class CifarResNet(nn.Module):
    """ResNet-(6n + 2) of He et al. (2016), Section 4.2 (https://arxiv.org/abs/1512.03385).

    Args:
        depth: 6n + 2 layers; 32 in the paper.
        width: channels of the first stage; 16 in the paper. The classifier's input is 4 x width.
        num_classes: C; 0 removes the classifier.
        in_chans: channels of the image.
        global_pool: timm's name of the pooling.
        drop_rate: dropout before the classifier.

    Raises:
        ValueError: for a depth that is not 6n + 2.
    """

    def __init__(
        self,
        depth: int = 32,
        width: int = 16,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2 (8, 14, 20, 26, 32, ...), got {depth}")
        self.num_classes, self.drop_rate = num_classes, drop_rate
        self.layer1: nn.Module
        self.layer2: nn.Module
        self.layer3: nn.Module
        self.global_pool: nn.Module
        self.fc: nn.Module
        self.num_features = self.head_hidden_size = 4 * width
        self.grad_checkpointing = False
        self.conv1 = nn.Conv2d(in_chans, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU()  # a module, which timm's features_only needs
        blocks, chs = (depth - 2) // 6, width
        for stage in range(3):
            out_chs, stride = width * 2**stage, 1 if stage == 0 else 2
            layers = [BasicBlock(chs, out_chs, stride)] + [BasicBlock(out_chs, out_chs, 1) for _ in range(blocks - 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
            chs = out_chs
        self.feature_info = [{"num_chs": width * 2**i, "reduction": 2**i, "module": f"layer{i + 1}"} for i in range(3)]
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        assert not enable, "a network this small has no gradient checkpointing"

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str = "avg") -> None:
        self.num_classes = num_classes
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.global_pool(x)
        if self.drop_rate:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


@register_model
def resnet32_cifar(pretrained: bool = False, **kwargs) -> CifarResNet:
    """ResNet-32 with 464,154 parameters for 10 classes; ``depth`` and ``width`` make smaller ones."""
    feature_cfg = {"out_indices": (0, 1, 2)}
    return build_model_with_cfg(CifarResNet, "resnet32_cifar", pretrained, feature_cfg=feature_cfg, **kwargs)
