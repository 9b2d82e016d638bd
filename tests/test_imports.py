"""The core stays light: importing it must not bring a host or a plotting library."""

import configparser
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOSTS = ("timm", "fastreid", "sklearn", "matplotlib", "tensorboard")


def imported_by(statement):
    code = f"import sys; {statement}; print([name for name in {HOSTS} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_the_core_imports_no_host():
    assert imported_by("import mbj_plugin, mbj_plugin.after_training; mbj_plugin.FeatureMemoryLoss") == "[]"


def test_diagnostics_import_no_host():
    modules = ("memory_report", "step_meter", "probe", "monitor", "writer")
    assert imported_by(f"from mbj_plugin.diagnostics import {', '.join(modules)}") == "[]"


@pytest.mark.parametrize("host", ["timm", "sklearn"])
def test_this_test_can_fail(host):
    assert host in imported_by(f"import mbj_plugin, {host}")


def test_what_is_installed_is_whole_and_needs_no_clone():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    packages = {".".join(file.parent.relative_to(ROOT).parts) for file in ROOT.glob("mbj_plugin/**/__init__.py")}
    assert {*config["options"]["packages"].split()} == {*packages, "mbj_plugin.configs"}
    assert not [file for file in ROOT.glob("mbj_plugin/**/*.py") if "benchmarks" in file.read_text()]
