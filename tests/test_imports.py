"""The walls of the house: who imports whom, with a test that each can fail; the core brings no host."""

import ast
import configparser
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOSTS = ("timm", "fastreid", "sklearn", "matplotlib", "tensorboard")
# The equations import nothing of ours but each other.
PAPER = ("functional", "memory", "losses", "sampling", "checks")
CORE = r"mbj_plugin(?!\.(timm|fastreid|tools)\b)"
# Who may not import what, also inside a function.
WALLS = {
    "the core, of the hosts and the tools": (
        CORE,
        r"(timm|fastreid|fastreid_today|mbj_plugin\.(timm|fastreid|tools))\b",
    ),
    "the paper, of what is not the paper": (
        rf"mbj_plugin\.({'|'.join(PAPER)})$",
        rf"mbj_plugin\.(?!({'|'.join(PAPER)})\b)",
    ),
    "timm's side, of fast-reid's": (r"mbj_plugin\.timm\b", r"(fastreid|fastreid_today|mbj_plugin\.fastreid)\b"),
    "fast-reid's side, of timm's": (r"mbj_plugin\.fastreid\b", r"mbj_plugin\.timm\b"),
    "the method, of the tools": (r"mbj_plugin(?!\.tools\b)", r"mbj_plugin\.tools\b"),
    "the repair, of MBJ": (r"fastreid_today\b", r"(mbj_plugin|timm)\b"),
    "what is installed, of what is not": (r"(mbj_plugin|fastreid_today)\b", r"(benchmarks|tests|examples)\b"),
}


def breaches(folder, who, whom):
    """(module, what it imports) of each import that a wall forbids."""
    found = []
    for name, file in modules_of(folder).items():
        for node in ast.walk(ast.parse(file.read_text())) if re.match(who, name) else ():
            names = [f"{node.module}.{alias.name}" for alias in node.names] if isinstance(node, ast.ImportFrom) else ()
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else names
            found += [(name, one) for one in names if re.match(whom, one)]
    return found


def modules_of(folder):
    files = {".".join(f.relative_to(folder.parent).with_suffix("").parts): f for f in folder.rglob("*.py")}
    return {name.removesuffix(".__init__"): file for name, file in files.items()}


@pytest.mark.parametrize("wall", WALLS)
def test_walls(wall):
    assert not [one for folder in ("mbj_plugin", "fastreid_today") for one in breaches(ROOT / folder, *WALLS[wall])]


@pytest.mark.parametrize(
    ("wall", "module", "line"),
    [
        ("the core, of the hosts and the tools", "mbj_plugin/settings.py", "import timm.models"),
        ("the paper, of what is not the paper", "mbj_plugin/checks.py", "from mbj_plugin import settings"),
        ("timm's side, of fast-reid's", "mbj_plugin/timm/task.py", "from fastreid_today import changes"),
        ("fast-reid's side, of timm's", "mbj_plugin/fastreid/head.py", "from mbj_plugin import timm"),
        ("the method, of the tools", "mbj_plugin/timm/task.py", "import mbj_plugin.tools"),
        ("the repair, of MBJ", "fastreid_today/launch.py", "def late():\n    import mbj_plugin"),
        ("what is installed, of what is not", "mbj_plugin/tools/hub.py", "from benchmarks.rivals import ldam"),
    ],
)
def test_each_wall_can_fail(tmp_path, wall, module, line):
    file = tmp_path / module
    file.parent.mkdir(parents=True)
    file.write_text(line)
    assert len(breaches(tmp_path / file.relative_to(tmp_path).parts[0], *WALLS[wall])) == 1


def test_what_needs_no_host_imports_none():
    code = f"""
import sys, mbj_plugin.diagnostics, mbj_plugin.logit_adjustment, fastreid_today
mbj_plugin.FeatureMemoryLoss
print([name for name in {HOSTS} if name in sys.modules])
import timm
print([name for name in {HOSTS} if name in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    none, some = done.stdout.splitlines()
    assert none == "[]" and "timm" in some  # so that this can fail


def test_what_is_installed_is_whole_and_needs_no_clone():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    files = [*ROOT.glob("mbj_plugin/**/*.py"), *ROOT.glob("fastreid_today/**/*.py")]
    packages = {".".join(file.parent.relative_to(ROOT).parts) for file in files if file.name == "__init__.py"}
    assert {*config["options"]["packages"].split()} == {*packages, "mbj_plugin.configs"}
    assert not [file for file in files if "benchmarks" in file.read_text()]


def imports_of(folder):
    """Module to the modules of the package that it imports when it is imported itself."""
    files = modules_of(folder)
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
