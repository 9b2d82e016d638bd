"""Our commands: a package that is missing is one line, and how to install it."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("package", "module", "argument", "extra"),
    [
        ("timm", "mbj_plugin.train_timm", "--help", "timm"),
        ("torchvision", "mbj_plugin.train_timm", "--mbj", "timm"),
        ("matplotlib", "mbj_plugin.report", ".", "report"),
    ],
)
def test_a_missing_package_is_one_line(package, module, argument, extra):
    code = f"import sys; sys.modules[{package!r}] = None; from {module} import main; main([{argument!r}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert f"error: it needs the package {package}: pip install '.[{extra}]'" in done.stderr
