"""The compiled evaluation: where it lies, that it is the one that runs, and what runs where it cannot be built."""

import multiprocessing
import os
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np
import pytest
from fastreid.evaluation import rank

from fastreid_today import evaluation


@pytest.fixture
def search():
    """Distances, people and cameras of two queries and six images."""
    people, cameras = np.array([1, 2, 1, 2, 1, 2]), np.array([1, 1, 2, 2, 3, 3])
    distances = np.random.default_rng(0).random((2, 6)).astype(np.float32)
    return distances, people[:2], people, np.array([0, 0]), cameras


@pytest.fixture
def said(monkeypatch):
    """What is said, and a Python that has not loaded the compiled modules."""
    lines = []
    for level in ("info", "warning"):
        monkeypatch.setattr(evaluation.logger, level, lambda message, *values: lines.append(message % values))
    for name in evaluation.MODULES:
        monkeypatch.delitem(sys.modules, f"{evaluation.PACKAGE}.{name}", raising=False)
    return lines


def test_the_compiled_evaluation_is_the_one_that_runs(search, monkeypatch):
    if not (evaluation.built_upstream() or evaluation.load()):
        evaluation.build_and_load()
    if not evaluation.built_upstream():  # as after the first build, when rank.py has settled for Python
        monkeypatch.setattr(rank, "IS_CYTHON_AVAI", False)
        assert evaluation.load() and rank.IS_CYTHON_AVAI
    slow = rank.evaluate_rank(*search, use_cython=False)
    monkeypatch.setattr(rank, "eval_market1501", lambda *_: pytest.fail("the Python evaluation runs"))
    fast = rank.evaluate_rank(*search)
    assert all(np.allclose(a, b) for a, b in zip(fast, slow, strict=True))
    file = Path(sys.modules[f"{evaluation.PACKAGE}.rank_cy"].__file__)
    assert evaluation.built_upstream() or file.parent == evaluation.cache_dir()


def test_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert evaluation.cache_dir().parent == tmp_path / "fastreid_today"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert evaluation.cache_dir().parent == tmp_path / ".cache" / "fastreid_today"


def no_home():
    raise RuntimeError("Could not determine home directory.")


def closed(folder):
    raise PermissionError(13, "Permission denied", str(folder))


@pytest.mark.parametrize("broken", ["no home", "closed", "read-only", "no compiler"])
def test_where_it_cannot_be_built_the_python_evaluation_runs(search, said, monkeypatch, tmp_path, broken):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(evaluation, "SETUP", "raise SystemExit('no compiler')")
    if broken == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", no_home)
    elif broken == "closed":  # as for another user's home
        monkeypatch.setattr(Path, "exists", closed)
    elif broken == "read-only":
        monkeypatch.setattr(evaluation, "SETUP", "")
        monkeypatch.setattr(Path, "mkdir", lambda self, **_: closed(self))
    assert not evaluation.load()
    evaluation.build_and_load()
    assert "Python evaluation runs instead" in said[-1] and "XDG_CACHE_HOME" in said[-1]
    assert len(rank.evaluate_rank(*search, use_cython=False)) == 3


def test_a_build_of_another_system_is_left_alone(said, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in evaluation.MODULES:
        evaluation.cache_dir().mkdir(parents=True, exist_ok=True)
        (evaluation.cache_dir() / (name + EXTENSION_SUFFIXES[0])).write_bytes(b"of another machine")
    assert not evaluation.load()
    assert "does not load here" in said[0] and f"{evaluation.PACKAGE}.rank_cy" not in sys.modules


needs_root = pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="takes root")


@needs_root
@pytest.mark.parametrize("home", ["closed", None])
def test_any_home(said, monkeypatch, tmp_path, home):
    """As `docker run -u 12345`: the home is another user's, or there is none."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    if home:
        (tmp_path / home).mkdir(mode=0o700)
        monkeypatch.setenv("HOME", str(tmp_path / home))
    monkeypatch.setattr(evaluation, "SETUP", "")

    def another_user(answer):
        os.setgid(12345)
        os.setuid(12345)
        loaded = evaluation.load()
        evaluation.build_and_load()
        answer.put((loaded, said))

    context = multiprocessing.get_context("fork")
    answer = context.SimpleQueue()
    process = context.Process(target=another_user, args=(answer,))
    process.start()
    process.join()
    assert process.exitcode == 0
    loaded, lines = answer.get()
    assert not loaded and "Python evaluation runs instead" in lines[-1]


@needs_root
def test_a_full_cache_folder(said, monkeypatch, tmp_path):
    """A real one: a file system of 64 kB, and libraries of 100."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        text = "import sysconfig\nfor name in {names!r}:\n    "
        text += "open(name + sysconfig.get_config_var('EXT_SUFFIX'), 'wb').write(bytes(10**5))"
        monkeypatch.setattr(evaluation, "SETUP", text)
        evaluation.build_and_load()
        assert "No space left" in said[-1] and "Python evaluation runs instead" in said[-1] and len(said) == 2
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]  # no half of one
    finally:
        subprocess.run(["umount", tmp_path], check=True)
