"""An MBJLoss of settings that are given one by one."""

from mbj_plugin.settings import MBJSettings
from mbj_plugin.timm import MBJLoss

OF_THE_LOSS = ("start", "smoothing")


def mbj_loss(class_counts, base=None, **given):
    own = {name: given.pop(name) for name in OF_THE_LOSS if name in given}
    return MBJLoss(class_counts, base, MBJSettings(**given), **own)
