"""`mbj doctor [FOLDER]`: Try fast-reid in this Python, without and with the repairs. Prints the versions, the active
repairs with their reasons, and what is missing. FOLDER is a checkout, or a project that carries a copy."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

import fastreid_today
from fastreid_today import changes, selfcheck
from fastreid_today.copies import LAYOUT
from fastreid_today.packages import IMPLIED, INSTALL, NEEDED, OPTIONAL

SHOWN = ("mbj_plugin", "torch", "torchvision", "numpy", "fastreid", "yacs", "faiss-cpu", "Cython")


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


def _changes() -> Iterator[str]:
    for name, entry in changes.CHANGES.items():
        status = changes.STATUS.get(name, "not run")
        yield f"{name}: {status}"
        if status == "on":
            yield f"    fastreid/{entry.file}: {entry.what_for}"


def _evaluation() -> str:
    from fastreid_today import evaluation

    if evaluation.built_upstream():
        return f"built by fast-reid in {evaluation.source_dir()}"
    if evaluation.load():
        return f"built in {evaluation.cache_dir()}"
    return "not built yet: the first evaluation builds it, with Cython, setuptools and a C compiler"


def _as_it_came(package: str) -> list[str]:
    code = Path(selfcheck.__file__).read_text(encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", code, package], capture_output=True, text=True, check=False)
    return done.stdout.splitlines() or done.stderr.strip().splitlines()[-1:]


def find_copies(folder: Path) -> dict[str, Path]:
    """Each fast-reid below ``folder``: the name that it imports itself by, and the folder which that name is below."""
    found = {}
    for file in sorted(folder.glob(f"**/fastreid/{LAYOUT.as_posix()}")):
        own = re.search(r"^from ((?:\w+\.)*fastreid)\.data import", file.read_text(encoding="utf-8"), re.MULTILINE)
        package = own[1] if own else "fastreid"
        found[package] = file.parents[1 + len(package.split("."))]
    return found


def _ask_in(folder: Path, more: list[str]) -> int:
    """The report of a Python in whose working directory the copy's package is, since this one may have another."""
    copies = find_copies(folder)
    for package, place in copies.items():
        print(f"{folder} has fast-reid as {package}, below {place}", flush=True)
        path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, "-m", "fastreid_today.doctor", "--package", package, *more]
        done = subprocess.run(command, cwd=place, env={**os.environ, "PYTHONPATH": path}, check=False)
        if done.returncode:
            return done.returncode
    if not copies:
        print(f"{folder} has no fast-reid in it: there is no folder fastreid with {LAYOUT.as_posix()}")
    return 0 if copies else 2


def main(argv: list[str] | None = None) -> int:
    """Print the report; 1 where something is missing or a change does not fit, 2 for a folder without fast-reid."""
    parser = argparse.ArgumentParser(description=__doc__.partition(": ")[2])
    parser.add_argument(
        "folder", nargs="?", type=Path, help="checkout to examine (default: the fast-reid that `import fastreid` finds)"
    )
    parser.add_argument("--package", default="fastreid", help="name that it is imported by (default: %(default)s)")
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        help="also list the changes of this module, such as mbj_plugin.fastreid",
    )
    args = parser.parse_args(argv)
    if args.folder is not None:
        return _ask_in(args.folder.resolve(), [f"--plugin={name}" for name in args.plugin])
    return _report(args.package, args.plugin)


def _report(package: str, plugins: list[str]) -> int:
    lacking = [name for module, name in {**NEEDED, **IMPLIED}.items() if not _found(module)]
    lacking += [] if _found(package) else [f"{package} (with --no-deps)"]
    problem = None
    if not lacking:
        fastreid_today.AFTERWARDS += plugins
        try:
            importlib.import_module(package)
            fastreid_today.repair()
        except changes.UpstreamChangedError as error:
            problem = str(error)
    print("Versions", *_versions(), sep="\n  ")
    if lacking:
        print("Missing", *lacking, "install with:", INSTALL, sep="\n  ")
        return 1
    for module, (name, what_for) in OPTIONAL.items():
        if not _found(module):
            print(f"Missing: {name}, needed only for {what_for}")
    if not problem:
        print(f"fast-reid comes from {sys.modules['fastreid'].__file__}")
    print("Without the repairs", *_as_it_came(package), sep="\n  ")
    print("Changes", *_changes(), sep="\n  ")
    if problem:
        print(f"fastreid_today does not load: {problem}")
        return 1
    print("With `import fastreid_today`", *selfcheck.report(package), sep="\n  ")
    print(f"Fast evaluation: {_evaluation()}")
    if package != "fastreid":
        print("Start its scripts with `python -m fastreid_today.launch SCRIPT`: `fastreid` is this copy there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
