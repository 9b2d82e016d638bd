"""The core stays light: importing it must not bring a host or a plotting library."""

import subprocess
import sys

import pytest

HOSTS = ("timm", "fastreid", "sklearn", "matplotlib", "tensorboard")


def imported_by(statement):
    code = f"import sys; {statement}; print([name for name in {HOSTS} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_the_core_imports_no_host():
    assert imported_by("import mbj_plugin; mbj_plugin.FeatureMemoryLoss") == "[]"


def test_diagnostics_import_no_host():
    modules = ("memory_report", "step_meter", "probe", "monitor", "writer")
    assert imported_by(f"from mbj_plugin.diagnostics import {', '.join(modules)}") == "[]"


@pytest.mark.parametrize("host", ["timm", "sklearn"])
def test_this_test_can_fail(host):
    assert host in imported_by(f"import mbj_plugin, {host}")
