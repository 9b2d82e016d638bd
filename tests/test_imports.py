"""The core stays light: importing it must not bring a host or a plotting library."""

import ast
import configparser
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOSTS = ("timm", "fastreid", "sklearn", "matplotlib", "tensorboard")


def imported_by(statement):
    code = f"import sys; {statement}; print([name for name in {HOSTS} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_the_core_imports_no_host():
    assert imported_by("import mbj_plugin, mbj_plugin.logit_adjustment; mbj_plugin.FeatureMemoryLoss") == "[]"


def test_diagnostics_import_no_host():
    modules = ("memory_report", "step_meter", "probe", "monitor", "writer")
    assert imported_by(f"from mbj_plugin.diagnostics import {', '.join(modules)}") == "[]"


@pytest.mark.parametrize("host", ["timm", "sklearn"])
def test_this_test_can_fail(host):
    assert host in imported_by(f"import mbj_plugin, {host}")


def test_what_is_installed_is_whole_and_needs_no_clone():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    files = [*ROOT.glob("mbj_plugin/**/*.py"), *ROOT.glob("fastreid_today/**/*.py")]
    packages = {".".join(file.parent.relative_to(ROOT).parts) for file in files if file.name == "__init__.py"}
    assert {*config["options"]["packages"].split()} == {*packages, "mbj_plugin.configs"}
    assert not [file for file in files if "benchmarks" in file.read_text()]


def imports_of(folder):
    """Module to the modules of the package that it imports when it is imported itself."""
    files = {".".join(f.relative_to(folder.parent).with_suffix("").parts): f for f in folder.rglob("*.py")}
    files = {name.removesuffix(".__init__"): file for name, file in files.items()}
    found = {}
    for name, file in files.items():
        tops = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        named = [
            f"{node.module}.{alias.name}" for node in tops if isinstance(node, ast.ImportFrom) for alias in node.names
        ]
        named += [alias.name for node in tops if isinstance(node, ast.Import) for alias in node.names]
        found[name] = {part for one in named for part in (one, one.rpartition(".")[0]) if part in files} - {name}
        # Of `from package import module` the module is meant.
        found[name] -= {one.rpartition(".")[0] for one in named if one in files}
    return found


def test_no_import_circles():
    TopologicalSorter(imports_of(ROOT / "mbj_plugin")).prepare()


def test_a_circle_is_found(tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.py").write_text("from p.b import x")
    (tmp_path / "p" / "b.py").write_text("from p import a")
    with pytest.raises(CycleError):
        TopologicalSorter(imports_of(tmp_path / "p")).prepare()
