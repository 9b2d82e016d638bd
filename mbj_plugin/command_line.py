"""What our commands share: a mistake of the user is one line that names the value and the fix, never a traceback."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage text, and name the flag that was probably meant."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            message = self.explain_unknown(unknown.split()[0].partition("=")[0], message)
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")

    def explain_unknown(self, flag: str, message: str) -> str:
        """The message for a flag that is not known."""
        if not flag.startswith("-"):
            return message
        near = difflib.get_close_matches(flag, self._option_string_actions, 1)
        return f"there is no flag {flag}" + (f", did you mean {near[0]}?" if near else "")


@contextmanager
def one_line(command: str, missing: str = "") -> Iterator[None]:
    """End the command with one line for what is the user's or the machine's, not ours.

    Args:
        command: its name.
        missing: how to install a package that is missing.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        print(f"{command}: stopped" + (f"; {stop}" if str(stop) else ""), file=sys.stderr)
        sys.exit(130)  # as a shell does
    except ModuleNotFoundError as error:
        package = (error.name or "mbj_plugin").partition(".")[0]
        if package == "mbj_plugin":
            raise
        sys.exit(f"{command}: error: it needs the package {package}: {missing or f'pip install {package}'}")
    except (ValueError, OSError) as error:
        sys.exit(f"{command}: error: {reason(error)}")
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which this module does not import
            raise
        hint = ": lower --batch-size, or take --amp or --grad-checkpointing" if command == "train_timm" else ""
        sys.exit(f"{command}: error: {'. '.join(str(error).split('. ')[:2])}{hint}")


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
