"""Importing this makes fast-reid run on today's stack and registers MBJHead, MODEL.MBJ, the layer FeatureCloud, timm's
models as backbones and the long-tailed data sets.

Then `MODEL.HEADS.NAME: MBJHead` in any fast-reid config is enough. See docs/fastreid.md.
"""

import sys

from mbj_plugin.fastreid.messages import watch_errors
from mbj_plugin.fastreid.packages import INSTALL

# The doctor is the one who tells what is wrong, so for it alone the package comes up all the same.
_DOCTOR = "mbj_plugin.fastreid.doctor" in sys.orig_argv


def _enable() -> None:
    from mbj_plugin.fastreid import compat, compat_checkout, compat_cpu, compat_messages, compat_samplers  # noqa: F401

    compat.apply_all()  # the patches of all five
    from mbj_plugin.fastreid.install import install

    install()


watch_errors()
try:
    _enable()
except ModuleNotFoundError as error:
    if not _DOCTOR:
        raise ModuleNotFoundError(
            f"mbj_plugin.fastreid needs fast-reid and what it imports, and {error.name} is missing. fast-reid's own "
            f"pins cannot be met on current Python, so it is installed without its dependencies:\n  {INSTALL}",
            name=error.name,
        ) from error
except RuntimeError as error:
    if not _DOCTOR or type(error).__name__ != "UpstreamChangedError":
        raise
else:
    from mbj_plugin.fastreid.collect import collect_losses
    from mbj_plugin.fastreid.counts import prepare
    from mbj_plugin.fastreid.head import MBJHead

    __all__ = ["MBJHead", "collect_losses", "prepare"]
