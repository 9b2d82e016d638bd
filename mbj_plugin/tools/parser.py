"""What the parsers of our commands share."""

from __future__ import annotations

import argparse
import difflib
from typing import NoReturn


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage text, and name the flag that was probably meant."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            message = self.explain_unknown(unknown.partition(" ")[0].partition("=")[0], message)
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")

    def explain_unknown(self, flag: str, message: str) -> str:
        """The message for a flag that is not known."""
        if not flag:
            return "an argument is empty: a variable of the shell may not be set"
        if not flag.startswith("-"):
            return message
        near = difflib.get_close_matches(flag, self._option_string_actions, 1)
        return f"there is no flag {flag}" + (f", did you mean {near[0]}?" if near else "")


def check_device(name: str) -> None:
    """Raise ValueError for a device that torch does not know, or that is not here."""
    import torch  # slow, and --help does not need it

    try:
        index = torch.device(name).index
    except RuntimeError:
        raise ValueError(f"--device {name}: torch knows no such device, use cpu or cuda") from None
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name.startswith("cuda") and (index or 0) >= found:
        raise ValueError(f"--device {name}: torch {torch.__version__} sees {found or 'no'} CUDA device here")
