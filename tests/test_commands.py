"""Our commands: a package that is missing is one line, and how to install it."""

import functools
import importlib
import re
import sys
from pathlib import Path

import pytest

from mbj_plugin.command_line import UserError, did_you_mean, one_line
from mbj_plugin.functional import sampling_probs
from mbj_plugin.tools import command
from mbj_plugin.tools.files import read_jsonl
from mbj_plugin.tools.parser import OneLineParser
from tests.in_fork import in_fork

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("package", "module", "argument", "extra"),
    [
        ("timm", "mbj_plugin.tools.train_timm", "--help", "timm"),
        ("torchvision", "mbj_plugin.tools.train_timm", "--mbj", "timm"),
        ("matplotlib", "mbj_plugin.tools.report", ".", "report"),
    ],
)
def test_a_missing_package_is_one_line(package, module, argument, extra, tmp_path):
    def call():
        for name in list(sys.modules):  # as in a new process, but for torch
            if name.startswith(("timm.", "mbj_plugin.timm", "mbj_plugin.tools", "torchvision.", "matplotlib.")):
                del sys.modules[name]
        sys.modules.pop("timm", None)
        sys.modules[package] = None
        importlib.import_module(module).main([argument])

    done = in_fork(tmp_path, call)
    assert done.status == 1 and done.err.count("\n") == 1, done.err
    assert f"error: it needs the package {package}: pip install 'mbj_plugin[{extra}]'" in done.err


def test_modules_that_the_pages_run_are_commands():
    """`python -m` of a module without a last line that calls it ends without a word."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    named = {name for page in pages for name in re.findall(r"python -m (mbj_plugin[\w.]*\w)", page.read_text())}
    files = {name: ROOT / name.replace(".", "/") for name in named}
    files = {name: path / "__main__.py" if path.is_dir() else path.with_suffix(".py") for name, path in files.items()}
    assert "mbj_plugin.fastreid.launch" in named
    assert not [name for name, file in files.items() if "if __name__ ==" not in file.read_text()]


def end(raised, monkeypatch, traceback="0"):
    """What a command's error ends as: the line of a SystemExit, or the error itself."""
    monkeypatch.setenv("MBJ_TRACEBACK", traceback)
    try:
        with one_line("command"):
            raised()
    except SystemExit as stop:
        return stop.code
    except Exception as error:
        return error


def test_only_what_we_raise_for_a_user_is_one_line(monkeypatch):
    ours, theirs = functools.partial(sampling_probs, [3, 1], norm="typo"), functools.partial(int, "x")
    assert "typo" in end(ours, monkeypatch) and end(ours, monkeypatch).startswith("command: error: ")
    for raised in (ours, lambda: int("x"), theirs, lambda: Path("/nowhere").read_text(), lambda: [][1]):
        assert isinstance(end(raised, monkeypatch, "1"), Exception)
        assert raised is ours or isinstance(end(raised, monkeypatch), Exception)
    # Called by ours, but not raised there.
    assert isinstance(end(lambda: did_you_mean("a", theirs), monkeypatch), TypeError)
    assert isinstance(end(lambda: read_jsonl(Path(__file__).parent, "epoch"), monkeypatch), OSError)

    def in_a_worker():
        raise UserError("Caught UserError in DataLoader worker process 0.\nTrace\nno image can be read")

    assert end(in_a_worker, monkeypatch) == "command: error: no image can be read"


def test_an_empty_argument_is_named(capsys):
    with pytest.raises(SystemExit):
        OneLineParser(prog="mbj").parse_args(["", ""])
    assert capsys.readouterr().err.startswith("mbj: error: an argument is empty")


def test_one_command_for_all(capsys):
    assert command.main([]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in command.COMMANDS)
    assert command.main(["trian"]) == 2 and "'trian'" in capsys.readouterr().err
    for name, (module, _) in command.COMMANDS.items():
        assert callable(importlib.import_module(module).main), name
    with pytest.raises(SystemExit) as stop:
        command.main(["train", "--help"])
    assert stop.value.code == 0 and "--mbj" in capsys.readouterr().out
