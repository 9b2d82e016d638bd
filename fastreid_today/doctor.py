"""`python -m fastreid_today.doctor [CHECKOUT]`: what fast-reid does in this Python without the plugin and with it,
versions, which patches are on and why, what is missing."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from fastreid_today import selfcheck
from fastreid_today.packages import IMPLIED, INSTALL, NEEDED, OPTIONAL

SHOWN = ("mbj_plugin", "torch", "torchvision", "numpy", "fastreid", "yacs", "faiss-cpu", "Cython")


def missing() -> list[str]:
    """Packages that fast-reid needs and this Python lacks."""
    needed = {"fastreid": "fastreid (with --no-deps)", **NEEDED, **IMPLIED}
    return [package for module, package in needed.items() if not _found(module)]


def missing_options() -> list[str]:
    """Packages that this Python lacks and only a part of fast-reid needs, with what for."""
    return [f"{package}: {what_for}" for module, (package, what_for) in OPTIONAL.items() if not _found(module)]


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def _versions() -> Iterator[str]:
    yield f"python {platform.python_version()}"
    for package in SHOWN:
        try:
            yield f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"{package} is not installed as a package"
    yield f"CUDA is {'available' if torch.cuda.is_available() else 'not available: everything runs on the CPU'}"


def _patches() -> Iterator[str]:
    from fastreid_today import compat

    for name, entry in compat.PATCHES.items():
        status = compat.STATUS.get(name, "not run")
        yield f"{name}: {status}"
        if status == "on":
            yield f"    fastreid/{entry.upstream}: {entry.symptom}"


def failed() -> list[str]:
    """Patches under which fast-reid has changed. The first ends the import, so later ones have not run."""
    from fastreid_today import compat

    return [name for name, status in compat.STATUS.items() if status.startswith("failed")]


def _evaluation() -> str:
    from fastreid_today import fast_eval

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


def _without_plugin() -> list[str]:
    code = Path(selfcheck.__file__).read_text(encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.splitlines() or done.stderr.strip().splitlines()[-1:]


def _ask_in(checkout: Path) -> int:
    """The report of a Python in whose working directory ``checkout`` is, since this one has imported fast-reid."""
    if not (checkout / "fastreid" / "__init__.py").is_file():
        print(f"{checkout} is no checkout of fast-reid: it has no fastreid/__init__.py; give the folder above it")
        return 2
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "fastreid_today.doctor"]
    return subprocess.run(command, cwd=checkout, env={**os.environ, "PYTHONPATH": path}, check=False).returncode


def main(argv: list[str] | None = None) -> int:
    """Print the report; 1 where something is missing or a patch does not fit, 2 for a folder without fast-reid."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "checkout", nargs="?", type=Path, help="folder of a fast-reid checkout; without it what `import fastreid` finds"
    )
    checkout = parser.parse_args(argv).checkout
    return _report() if checkout is None else _ask_in(checkout.resolve())


def _report() -> int:
    print("Versions", *_versions(), sep="\n  ")
    lacking = missing()
    if lacking:
        print("Missing", *lacking, "install with:", INSTALL, sep="\n  ")
        return 1
    if missing_options():
        print("Missing, needed only for", *missing_options(), sep="\n  ")
    spec = importlib.util.find_spec("fastreid")
    assert spec is not None  # else it is missing, see above
    print(f"fast-reid comes from {spec.origin}")
    print("Without the plugin", *_without_plugin(), sep="\n  ")
    print("Patches", *_patches(), sep="\n  ")
    if failed():
        print(f"fastreid_today does not load: fast-reid has changed under {', '.join(failed())}")
        return 1
    print("With `import fastreid_today`", *selfcheck.report(), sep="\n  ")
    print(f"Fast evaluation: {_evaluation()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
