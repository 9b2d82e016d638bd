"""`python -m mbj_plugin.fastreid.doctor`: versions, which patches are on and why, what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import sys
from collections.abc import Iterator

import torch

import mbj_plugin
from mbj_plugin.fastreid import INSTALL, autoload

# Module that fast-reid imports -> package that brings it.
NEEDED = {
    "fastreid": "fastreid (with --no-deps)",
    "torchvision": "torchvision",
    "PIL": "Pillow",
    "yaml": "PyYAML",
    "yacs": "yacs",
    "faiss": "faiss-cpu",
    "cv2": "opencv-python-headless",
    "sklearn": "scikit-learn",
    "tabulate": "tabulate",
    "termcolor": "termcolor",
    "tensorboard": "tensorboard",
}
SHOWN = ("torch", "torchvision", "numpy", "fastreid", "yacs", "faiss-cpu", "Cython")


def missing() -> list[str]:
    """Packages that fast-reid needs and this Python lacks."""
    return [package for module, package in NEEDED.items() if not _found(module)]


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def _versions() -> Iterator[str]:
    yield f"python {platform.python_version()}, mbj_plugin {mbj_plugin.__version__}"
    for package in SHOWN:
        try:
            yield f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"{package} is not installed as a package"
    yield f"CUDA is {'available' if torch.cuda.is_available() else 'not available: everything runs on the CPU'}"


def _patches() -> Iterator[str]:
    from mbj_plugin.fastreid import compat

    for name, entry in compat.PATCHES.items():
        status = compat.STATUS.get(name, "not run")
        yield f"{name}: {status}"
        if status == "on":
            yield f"    fastreid/{entry.upstream}: {entry.symptom}"


def _evaluation() -> str:
    from mbj_plugin.fastreid import fast_eval

    if fast_eval.built_upstream():
        return f"built by fast-reid in {fast_eval.source_dir()}"
    if fast_eval.load():
        return f"built in {fast_eval.cache_dir()}"
    lacking = [name for name in ("Cython", "setuptools") if importlib.util.find_spec(name) is None]
    lacking += [] if shutil.which("cc") or shutil.which("gcc") or shutil.which("clang") else ["a C compiler"]
    return (
        f"not built, and cannot be without {', '.join(lacking)}"
        if lacking
        else "not built yet: the first run builds it"
    )


def main() -> int:
    """Print the report; 1 where something is missing."""
    print("Versions", *_versions(), sep="\n  ")
    lacking = missing()
    if lacking:
        print("Missing", *lacking, "install with:", INSTALL, sep="\n  ")
        return 1
    print(f"fast-reid comes from {importlib.util.find_spec('fastreid').origin}")
    print("Patches", *_patches(), sep="\n  ")
    print(f"Fast evaluation: {_evaluation()}")
    print(f"Autoload: {'on' if autoload.enabled() else 'off'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
