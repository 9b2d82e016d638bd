"""Importing this makes fast-reid run on today's stack and registers MBJHead, MODEL.MBJ, timm's
models as backbones and the long-tailed data sets.

Then `MODEL.HEADS.NAME: MBJHead` in any fast-reid config is enough. See docs/fastreid.md.
"""

import fastreid_today  # noqa: F401  fast-reid cannot be imported before it
from mbj_plugin.fastreid.messages import watch_errors

watch_errors()

from mbj_plugin.fastreid.install import install  # noqa: E402

install()

from mbj_plugin.fastreid.collect import collect_losses  # noqa: E402
from mbj_plugin.fastreid.counts import prepare  # noqa: E402
from mbj_plugin.fastreid.head import MBJHead  # noqa: E402

__all__ = ["MBJHead", "collect_losses", "prepare"]
