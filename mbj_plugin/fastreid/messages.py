"""A user's mistake ends a command with one line, and no traceback."""

from __future__ import annotations

import os
import re
import sys
import traceback
from pathlib import Path
from types import TracebackType

import torch.multiprocessing

import fastreid_today
import mbj_plugin

# Who raises these, of where it is raised, speaks of what the user has written.
MISTAKES = (ValueError, FileNotFoundError, PermissionError, ModuleNotFoundError, KeyError, AssertionError)
OWN = tuple(str(Path(package.__file__).parent) for package in (mbj_plugin, fastreid_today))
PLACES = ("yacs/config", "fastreid/config/config", "utils/file_io", "utils/checkpoint", "modeling/heads/embedding_head")
SWITCH = "MBJ_TRACEBACK"


def one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> str | None:
    """What to say of an error that is the user's mistake; None for any other.

    Of a spawned rank the error comes as text, with its traceback.
    """
    if issubclass(kind, KeyboardInterrupt):
        return "interrupted"
    if issubclass(kind, torch.multiprocessing.ProcessRaisedException):
        return _of_a_rank(str(error))
    frames = traceback.extract_tb(trace)
    if not frames or not issubclass(kind, MISTAKES) or not _speaks_of_the_user(frames[-1].filename, kind):
        return None
    return f"error: {_text(error)}"


def _text(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split())


def _speaks_of_the_user(file: str, kind: type[BaseException]) -> bool:
    if file.startswith(OWN):
        return not issubclass(kind, AssertionError)  # those are ours, of what cannot be
    return Path(file).with_suffix("").as_posix().endswith(PLACES)


def _of_a_rank(text: str) -> str | None:
    files = re.findall(r'^  File "(.+)", line \d+', text, re.MULTILINE)
    last = re.findall(r"^(\w+(?:\.\w+)*): (.+)$", text, re.MULTILINE)
    if not files or not last:
        return None
    name, said = last[-1]
    kinds = {kind.__name__: kind for kind in MISTAKES} | {"UnknownNameError": KeyError}
    kind = kinds.get(name.rpartition(".")[2])
    return f"error: {said}" if kind and _speaks_of_the_user(files[-1], kind) else None


def watch_errors() -> None:
    """Let this process end with one line where the user is wrong, unless MBJ_TRACEBACK=1 is set."""
    previous = sys.excepthook
    if os.environ.get(SWITCH, "0") != "0":
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        said = one_line(kind, error, trace)
        if said is None:
            previous(kind, error, trace)
        else:
            print(said, file=sys.stderr)

    sys.excepthook = hook
