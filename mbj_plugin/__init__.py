"""Memory-based Jitter (MBJ) for long-tailed recognition: the core. It knows no host.

``import mbj_plugin.timm`` and ``import mbj_plugin.fastreid`` bring it to the hosts.
"""

from mbj_plugin.functional import cosface_loss, memory_cross_entropy, multi_prototype_loss, sampling_probs
from mbj_plugin.longtail import class_groups, exponential_counts, exponential_subset, head_tail_subset
from mbj_plugin.losses import FeatureMemoryLoss, PrototypeMemoryLoss
from mbj_plugin.memory import MemoryBank

__version__ = "0.1.0"

__all__ = [
    "FeatureMemoryLoss",
    "MemoryBank",
    "PrototypeMemoryLoss",
    "class_groups",
    "cosface_loss",
    "exponential_counts",
    "exponential_subset",
    "head_tail_subset",
    "memory_cross_entropy",
    "multi_prototype_loss",
    "sampling_probs",
]
