"""The command ``mbj``: one name for all of them, each imported where it is called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

#: Module and what it does.
COMMANDS = {
    "train": ("mbj_plugin.tools.train_timm", "train a timm classifier, with MBJ or without"),
    "adjust": ("mbj_plugin.tools.adjust", "compare classifiers on the features of finished runs"),
    "report": ("mbj_plugin.tools.report", "write a page on one run or several"),
    "hub": ("mbj_plugin.tools.hub", "write a run as a folder that timm loads, also from Hugging Face's hub"),
    "train-fastreid": ("mbj_plugin.tools.fastreid.train", "train a fast-reid model"),
    "export": ("mbj_plugin.tools.fastreid.export", "write a fast-reid run as files that need no plugin"),
    "doctor": ("fastreid_today.doctor", "check whether fast-reid works here, and list the repairs"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """``mbj COMMAND ...``; without a command the list of them."""
    name, *rest = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if name in ("-h", "--help"):
        print("usage: mbj COMMAND ..., each with --help\n")
        print("\n".join(f"  {name:<16}{text}" for name, (_, text) in COMMANDS.items()))
        return 0
    if name not in COMMANDS:
        print(f"mbj: error: there is no command {name!r}: take one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    sys.argv[0] = f"mbj {name}"  # for the usage line
    return importlib.import_module(COMMANDS[name][0]).main(rest) or 0


if __name__ == "__main__":
    sys.exit(main())
