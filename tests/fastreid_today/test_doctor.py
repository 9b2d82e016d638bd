"""The doctor of a Python without fast-reid, and of one where fast-reid has changed; test_copies.py has its report."""

import configparser
import dataclasses
import importlib
import sys
from pathlib import Path

import pytest

import fastreid_today
from fastreid_today import changes, doctor, packages, selfcheck


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """No Python of its own is started to see fast-reid as it came."""
    monkeypatch.setattr(doctor, "_as_it_came", lambda package: ["not asked"])


def test_without_fastreid(monkeypatch, capsys):
    find = doctor._found
    monkeypatch.setattr(doctor, "_found", lambda module: module not in ("fastreid", "faiss") and find(module))
    assert doctor.main([]) == 1
    said = capsys.readouterr().out
    assert "  faiss-cpu\n" in said and "pip install --no-deps fastreid==1.4.0" in said

    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match=r"pip install --no-deps fastreid==1.4.0$"):
        fastreid_today.repair()


def test_a_change_that_does_not_fit(monkeypatch, capsys):
    monkeypatch.setattr(changes, "STATUS", {**changes.STATUS, "cpu_loader": "failed: another"})
    gone = dataclasses.replace(changes.CHANGES["cpu_loader"], apply=fails)
    monkeypatch.setitem(changes.CHANGES, "cpu_loader", gone)
    monkeypatch.delitem(changes.STATUS, "testable")  # one that comes later
    assert doctor.main([]) == 1
    said = capsys.readouterr().out
    assert "cpu_loader: failed: it is gone" in said and "testable: not run" in said and "does not load" in said


def fails():
    raise changes.UpstreamChangedError("it is gone")


def test_what_a_step_and_an_import_do(monkeypatch):
    works, changes_weights = selfcheck.report()
    assert works.endswith("engine: works") and changes_weights.endswith("changes the weights")
    monkeypatch.setitem(sys.modules, "fastreid.engine", None)
    monkeypatch.setattr("fastreid.solver.build_optimizer", lambda cfg, model: [Still(model.parameters())])
    fails, still = selfcheck.report()
    assert "engine: fails: ModuleNotFoundError: " in fails and still.endswith("changes no weight, without an error")


class Still:
    """An optimizer that does nothing, as fast-reid's on torch >= 2.0."""

    def __init__(self, parameters):
        self.step = self.zero_grad = lambda: None


def test_the_extra_names_what_the_doctor_looks_for():
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).resolve().parents[2] / "setup.cfg")
    extra = setup["options.extras_require"]["fastreid"].split()
    assert sorted(extra) == sorted(packages.EXTRA) and all(package in packages.INSTALL for package in extra)
