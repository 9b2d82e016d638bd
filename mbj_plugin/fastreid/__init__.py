"""Importing this makes fast-reid run on today's stack and registers MBJHead, MODEL.MBJ, timm's models as backbones and
the long-tailed data sets.

Then `MODEL.HEADS.NAME: MBJHead` in any fast-reid config is enough. See docs/fastreid.md.
"""

import sys

import fastreid_today

# `python -m mbj_plugin.fastreid.launch` is on its way to that file: the script says which fast-reid it runs on.
if sys.argv[:1] != ["-m"] or f"{__name__}.launch" not in sys.orig_argv:
    fastreid_today.repair()

    from mbj_plugin.fastreid.install import install

    install()

    from mbj_plugin.fastreid.collect import collect_losses
    from mbj_plugin.fastreid.counts import prepare
    from mbj_plugin.fastreid.head import MBJHead

__all__ = ["MBJHead", "collect_losses", "prepare"]
