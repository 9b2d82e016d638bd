"""Runs the python and bash blocks of a page of docs/, in their order, in the working directory of the test."""

import importlib.util
import re
import shlex
from collections.abc import Callable
from glob import glob
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
# A comment before a block may name modules, without which it is left out.
BLOCK = re.compile(r"^(?:<!-- needs (.*?) -->\n)?```(python|bash)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"# (\w+\.py)\n")
# What installs or uploads has no place in a test.
NOT_RUN = ("pip install", "hf upload")


def run_page(name: str, commands: dict[str, Callable[[list[str]], Any]], **names: Any) -> dict[str, Any]:
    """Run a page.

    Args:
        name: of the file in docs/.
        commands: first words of a command line to what takes the others; the longest match counts.
        names: variables of the python blocks, which share them; a block that begins with a file's name is
            written there.

    Returns:
        The variables that the python blocks leave.
    """
    page = (DOCS / name).read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(page))
    assert blocks, f"docs/{name} has nothing to run"
    for block in blocks:
        needs, kind, text = block.groups(default="")
        if any(importlib.util.find_spec(module) is None for module in needs.split()):
            continue
        if kind == "bash":
            for line in filter(None, text.replace("\\\n", " ").splitlines()):
                _run_line(name, line, commands)
        elif file := FILE.match(text):
            Path(file[1]).write_text(text, encoding="utf-8")
        else:
            before = "\n" * page.count("\n", 0, block.start(3))  # so that an error names the page's own line
            exec(compile(before + text, str(DOCS / name), "exec"), names)
    return names


def _run_line(page: str, line: str, commands: dict[str, Callable[[list[str]], Any]]) -> None:
    words = [word for given in shlex.split(line, comments=True) for word in sorted(glob(given)) or [given]]
    if " ".join(words).startswith(NOT_RUN):
        return
    for start in sorted(commands, key=len, reverse=True):
        if words[: len(start.split())] == start.split():
            commands[start](words[len(start.split()) :])
            return
    raise AssertionError(f"docs/{page}: no test runs {line!r}")
