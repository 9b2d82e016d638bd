"""Our commands: a package that is missing is one line, and how to install it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("package", "module", "argument", "extra"),
    [
        ("timm", "mbj_plugin.tools.train_timm", "--help", "timm"),
        ("torchvision", "mbj_plugin.tools.train_timm", "--mbj", "timm"),
        ("matplotlib", "mbj_plugin.tools.report", ".", "report"),
    ],
)
def test_a_missing_package_is_one_line(package, module, argument, extra):
    code = f"import sys; sys.modules[{package!r}] = None; from {module} import main; main([{argument!r}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert f"error: it needs the package {package}: pip install '.[{extra}]'" in done.stderr


def test_modules_that_the_pages_run_are_commands():
    """`python -m` of a module without a last line that calls it ends without a word."""
    pages = [ROOT / "README.md", ROOT / "setup.py", *(ROOT / "docs").rglob("*.md")]
    named = {name for page in pages for name in re.findall(r"python -m (mbj_plugin[\w.]*\w)", page.read_text())}
    files = {name: ROOT / name.replace(".", "/") for name in named}
    files = {name: path / "__main__.py" if path.is_dir() else path.with_suffix(".py") for name, path in files.items()}
    assert "mbj_plugin.fastreid.launch" in named
    assert not [name for name, file in files.items() if "if __name__ ==" not in file.read_text()]
