"""MBJ in timm. Importing it registers ``resnet32_cifar`` and, where timm has a loss factory, the loss "mbj"."""

from mbj_plugin.timm.criterion import MBJLoss
from mbj_plugin.timm.head import attach_head
from mbj_plugin.timm.loss_factory import register_loss
from mbj_plugin.timm.models import CifarResNet, resnet32_cifar
from mbj_plugin.timm.task import MBJTask

register_loss()

__all__ = ["CifarResNet", "MBJLoss", "MBJTask", "attach_head", "register_loss", "resnet32_cifar"]
