"""Importing this makes fast-reid 1.4.0 run, and train, on today's Python, torch, NumPy and torchvision.

It acts when fast-reid is imported, under whatever name: see copies.py. ``python -m fastreid_today.doctor`` lists the
changes, ``python -m fastreid_today.launch SCRIPT`` runs a script that does not import it.
"""

import importlib
import sys

from fastreid_today.copies import Finder
from fastreid_today.packages import INSTALL

# They hold the changes, which are made in this order.
MODULES = ["training", "cpu", "evaluation", "samplers", "checkpoints", "config", "data", "checkout"]
AFTERWARDS: list[str] = []  # modules to import as soon as fast-reid has been repaired


def repair() -> None:
    """Change the fast-reid that is imported, or that `import fastreid` finds. What has been done is not done again.

    Raises:
        ModuleNotFoundError: where fast-reid or a package that it imports is missing, with the command that installs it.
        UpstreamChangedError: for a fast-reid that is not the one these changes were written for.
    """
    from fastreid_today.changes import apply_all

    try:
        importlib.import_module("fastreid")  # comes back here
        for name in MODULES:
            importlib.import_module(f"fastreid_today.{name}")
        apply_all(MODULES)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"fast-reid, or a package that it imports, is missing: {error.name}. fast-reid's own pins cannot be met on "
            f"current Python, so it is installed without its dependencies:\n  {INSTALL}",
            name=error.name,
        ) from error
    for name in AFTERWARDS:
        importlib.import_module(name)


FINDER = Finder(repair)
sys.meta_path.insert(0, FINDER)
if "fastreid" in sys.modules:
    repair()
