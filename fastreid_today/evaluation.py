"""fast-reid's evaluation: its Cython part built outside its folder (4 s, not 105 s, for Market-1501), and its numbers
in the run's files.

It is built once, into the folder ``fastreid_today`` of the user's cache: ``$XDG_CACHE_HOME``, or else ``~/.cache``.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np

from fastreid_today.changes import change, replaces
from fastreid_today.training import lend

MODULES = ("rank_cy", "roc_cy")
PACKAGE = "fastreid.evaluation.rank_cylib"
# Runs in a child process, where setuptools may change what it likes.
SETUP = """
import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
extensions = [Extension(name, [name + ".pyx"], include_dirs=[numpy.get_include()]) for name in {names!r}]
setup(name="rank_cylib", script_args=["-q", "build_ext", "--inplace"], ext_modules=cythonize(extensions, quiet=True))
"""
logger = logging.getLogger("fastreid.today")


def source_dir() -> Path:
    """Folder of fast-reid's .pyx files."""
    from fastreid.evaluation import rank_cylib

    return Path(rank_cylib.__file__).parent


def built_upstream() -> bool:
    """Whether fast-reid's own folder holds the built modules."""
    return all(any((source_dir() / (name + end)).exists() for end in EXTENSION_SUFFIXES) for name in MODULES)


def cache_dir() -> Path:
    """Folder of our build: one per source text, Python ABI and NumPy major version."""
    digest = hashlib.sha256(b"".join((source_dir() / f"{name}.pyx").read_bytes() for name in MODULES)).hexdigest()[:12]
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = f"{digest}-{sysconfig.get_config_var('SOABI')}-numpy{np.__version__.partition('.')[0]}"
    return root / "fastreid_today" / f"evaluation-{key}"


def _library(name: str) -> Path:
    return cache_dir() / (name + EXTENSION_SUFFIXES[0])


def load() -> bool:
    """Put the built modules where fast-reid imports them from; False where none are built yet, or not for this system
    (a home folder can be shared by several, or be closed to this user)."""
    try:
        folder = cache_dir()
        if not all(_library(name).exists() for name in MODULES):
            return False
    except (OSError, RuntimeError):
        return False
    path = importlib.import_module(PACKAGE).__path__
    if str(folder) not in path:
        path.insert(0, str(folder))
    try:
        rank_cy, _ = [importlib.import_module(f"{PACKAGE}.{name}") for name in MODULES]
    except ImportError as error:
        logger.warning("The fast evaluation in %s does not load here (%s)", folder, error)
        return False
    rank = sys.modules.get("fastreid.evaluation.rank")
    if rank is not None:  # imported before, it has settled for Python
        vars(rank).update(evaluate_cy=rank_cy.evaluate_cy, IS_CYTHON_AVAI=True)
    return True


def build() -> str:
    """Build into the cache folder; returns why it could not be done, or an empty string."""
    with tempfile.TemporaryDirectory() as folder:
        for name in MODULES:
            shutil.copy(source_dir() / f"{name}.pyx", folder)
        command = [sys.executable, "-c", SETUP.format(names=MODULES)]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if result.returncode:
            return (result.stderr.strip().splitlines() or ["no message"])[-1]
        cache_dir().mkdir(parents=True, exist_ok=True)
        for name in MODULES:
            # Renamed into place, so that a run that starts meanwhile never loads half a file.
            part = cache_dir() / f"{name}.{os.getpid()}.part"
            try:
                shutil.copy(Path(folder) / _library(name).name, part)
                part.replace(_library(name))
            finally:
                part.unlink(missing_ok=True)  # half a file, where the disk is full
    return ""


def build_and_load() -> None:
    """What runs instead of fast-reid's ``compile_helper``: never ends the process."""
    try:
        logger.info("The first evaluation compiles its fast part, once, into %s", cache_dir())
        problem = build()
    except (OSError, RuntimeError) as error:
        problem = str(error)
    if problem or not load():
        logger.warning(
            "The fast evaluation could not be built (%s). The Python evaluation runs instead: same numbers, about 25 "
            "times slower. `pip install Cython setuptools`, a C compiler and a cache folder that can be written "
            "(XDG_CACHE_HOME) are what it takes.",
            problem or "what was built does not load",
        )


@change(
    "evaluation/rank_cylib", "the first evaluation writes into fast-reid's folder, and without Cython ends the process"
)
def fast_evaluation() -> str | None:
    """The Cython evaluation is built in the user's cache folder and loaded from there; where it cannot be built, a
    warning says why and the Python evaluation runs."""
    from fastreid.evaluation import reid_evaluation

    if built_upstream():
        return "built in fast-reid's own folder"
    load()
    reid_evaluation.compile_helper = build_and_load
    return None


@change("evaluation/rank.py", "the CUHK03 metric: `module 'numpy' has no attribute 'bool'`, NumPy 1.24 to 1.26")
def numpy_bool() -> str | None:
    """Its `np` gets `np.bool` back; NumPy itself stays as it is."""
    if int(np.__version__.partition(".")[0]) >= 2:
        return f"NumPy {np.__version__} has np.bool"
    from fastreid.evaluation import rank

    rank.np = lend(np, bool=bool)
    return None


@replaces(
    "engine.hooks:EvalHook._do_eval",
    "metrics.json and TensorBoard lack the last evaluation: the writers have written that iteration",
)
def evaluations_in_metrics(evaluate, self):
    """Each evaluation is written when it is done, with its iteration."""
    from fastreid.utils.events import JSONWriter, TensorboardXWriter

    storage = self.trainer.storage
    before = dict(storage._latest_scalars)
    evaluate(self)
    latest = storage._latest_scalars
    found = {name: value for name, value in latest.items() if before.get(name) is not value}
    for writer in (writer for hook in self.trainer._hooks for writer in getattr(hook, "_writers", ())):
        if isinstance(writer, JSONWriter | TensorboardXWriter):
            if writer._last_write >= storage.iter:  # what else is of this iteration is written
                writer._last_write, storage._latest_scalars = storage.iter - 1, found
            writer.write()
            storage._latest_scalars = latest
