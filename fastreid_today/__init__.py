"""Importing this makes fast-reid 1.4.0 run, and train, on today's Python, torch, NumPy and torchvision.

It knows nothing of Memory-based Jitter; ``import mbj_plugin.fastreid`` imports it. ``python -m fastreid_today.doctor``
lists what it changes.
"""

import sys

from fastreid_today.packages import INSTALL

# The doctor tells what is wrong, so it alone starts where something is.
DOCTOR_RUNS = "fastreid_today.doctor" in sys.orig_argv


def _enable() -> None:
    from fastreid_today import (  # noqa: F401
        checkpoints,
        compat,
        compat_checkout,
        compat_cpu,
        compat_messages,
        compat_samplers,
        images,
        results,
    )

    compat.apply_all()  # the patches of all eight


try:
    _enable()
except ModuleNotFoundError as error:
    if not DOCTOR_RUNS:
        raise ModuleNotFoundError(
            f"fast-reid, or a package that it imports, is missing: {error.name}. fast-reid's own pins cannot be met on "
            f"current Python, so it is installed without its dependencies:\n  {INSTALL}",
            name=error.name,
        ) from error
except RuntimeError as error:
    if not DOCTOR_RUNS or type(error).__name__ != "UpstreamChangedError":
        raise
