"""What our commands share: a mistake of the user is one line that names the value and the fix, never a traceback."""

from __future__ import annotations

import difflib
import dis
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

#: Packages whose ValueErrors are for the user.
OURS = ("mbj_plugin", "fastreid_today")


class UserError(ValueError):
    """A user's mistake that is one line wherever it comes up. It is needed where torch raises an error of ours anew,
    as for a loader's worker; in all other places a plain ValueError will do."""


@contextmanager
def one_line(command: str, missing: str = "", also: str = "") -> Iterator[None]:
    """End the command with one line for a mistake of the user's: a ValueError that a ``raise`` of ours made.

    Every other error keeps its traceback, as it is of the program; with MBJ_TRACEBACK=1 all do.

    Args:
        command: its name.
        missing: how to install a package that is missing.
        also: one more package whose ValueErrors are for the user.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        print(f"{command}: stopped" + (f"; {stop}" if str(stop) else ""), file=sys.stderr)
        sys.exit(130)  # as a shell does
    except (ModuleNotFoundError, ValueError) as error:
        if os.environ.get("MBJ_TRACEBACK") == "1":
            raise
        if isinstance(error, ModuleNotFoundError):
            package = (error.name or "").partition(".")[0]
            if package in ("", *OURS):
                raise
            sys.exit(f"{command}: error: it needs the package {package}: {missing or f'pip install {package}'}")
        if not (isinstance(error, UserError) or _raised_in((*OURS, also), error)):
            raise
        sys.exit(f"{command}: error: {reason(error)}")


def _raised_in(packages: tuple[str, ...], error: BaseException) -> bool:
    """Whether a ``raise`` statement of these packages made the error, and not what they call."""
    trace = error.__traceback__
    assert trace is not None
    while trace.tb_next is not None:
        trace = trace.tb_next
    code, module = trace.tb_frame.f_code.co_code, trace.tb_frame.f_globals.get("__name__", "")
    return module.partition(".")[0] in packages and code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def reason(error: BaseException) -> str:
    """What went wrong in one line; of an error in a loader's worker the last line, which is the error itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1] if lines[0].startswith("Caught ") else " ".join(lines)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The end of a message on a name that is not known; empty where none of ``names`` is near."""
    near = difflib.get_close_matches(name, list(names), 1)
    return f", did you mean {near[0]!r}?" if near else ""
