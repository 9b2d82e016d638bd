"""MBJ in timm. Importing it registers ``resnet32_cifar``."""

from mbj_plugin.timm.criterion import MBJLoss
from mbj_plugin.timm.head import attach_head
from mbj_plugin.timm.models import CifarResNet, resnet32_cifar
from mbj_plugin.timm.task import MBJTask

__all__ = ["CifarResNet", "MBJLoss", "MBJTask", "attach_head", "resnet32_cifar"]
