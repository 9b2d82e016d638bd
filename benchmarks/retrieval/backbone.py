"""The small network of the committed rows, which a CPU trains in minutes."""

from __future__ import annotations

from fastreid.modeling.backbones import BACKBONE_REGISTRY
from torch import nn


@BACKBONE_REGISTRY.register()
def build_demo_backbone(cfg) -> nn.Module:
    """Five convolutions to MODEL.BACKBONE.FEAT_DIM channels at 1/8 of the resolution."""
    widths, strides = (3, 32, 64, 128, 128, cfg.MODEL.BACKBONE.FEAT_DIM), (2, 2, 2, 1, 1)
    layers = []
    for width_in, width_out, stride in zip(widths, widths[1:], strides, strict=False):
        convolution = nn.Conv2d(width_in, width_out, 3, stride, 1, bias=False)
        layers += [convolution, nn.BatchNorm2d(width_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
