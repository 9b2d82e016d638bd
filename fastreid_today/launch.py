"""`python -m fastreid_today.launch tools/train_net.py --config-file ...`: an unmodified script, fast-reid repaired.

The script runs inside the main module. A process that it spawns (one per GPU) starts by running its parent's main
module again, this one, and so comes up repaired as well; under `runpy` it would not.
"""

from __future__ import annotations

import dis
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fastreid_today

SCRIPT, PLUGIN = "FASTREID_TODAY_SCRIPT", "FASTREID_TODAY_PLUGIN"  # how spawned processes know what to run
TRACEBACK = "MBJ_TRACEBACK"
MISTAKES = (ValueError, FileNotFoundError, KeyError, ModuleNotFoundError)
KINDS = {*(kind.__name__ for kind in MISTAKES), "MissingError", "UnknownNameError"}


def launch(main: dict[str, Any], plugin: str = "") -> None:
    """Run the script that the command line names in the namespace ``main`` of the main module; ``plugin`` is a module
    to import with fast-reid."""
    if main["__name__"] == "__main__":
        if len(sys.argv) < 2 or not os.path.isfile(sys.argv[1]):
            wrong = f"there is no file {sys.argv[1]}" if len(sys.argv) > 1 else "which script?"
            sys.exit(f"{wrong}\nusage: python -m {main['__spec__'].name} SCRIPT.py [arguments of the script]")
        del sys.argv[0]
        os.environ.update({SCRIPT: os.path.abspath(sys.argv[0]), PLUGIN: plugin})
        main["__spec__"] = find_spec("fastreid_today.launch")  # what spawned processes run
        # As `python SCRIPT.py` does. The working directory stays behind it: a fast-reid checkout there goes before the
        # wheel, in spawned processes too.
        sys.path.insert(0, os.path.dirname(os.environ[SCRIPT]))
    fastreid_today.AFTERWARDS += filter(None, [os.environ[PLUGIN]])
    main["__file__"] = os.environ[SCRIPT]
    code = compile(Path(main["__file__"]).read_bytes(), main["__file__"], "exec")
    try:
        exec(code, main)
    except (Exception, KeyboardInterrupt) as error:
        said = one_line(error)
        if said is None:
            raise
        sys.exit(said)


def one_line(error: BaseException, plugin: str = "") -> str | None:
    """What to say of an error that is a user's mistake, which a `raise` of ours or of the plugin's made; None for any
    other, and where MBJ_TRACEBACK asks for the traceback."""
    if os.environ.get(TRACEBACK, "0") != "0":
        return None
    ours = {"fastreid_today", (plugin or os.environ.get(PLUGIN) or "fastreid_today").partition(".")[0]}
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if type(error).__name__ == "ProcessRaisedException":  # of a spawned rank: text, with its traceback
        frames = re.findall(r'^  File "(.+)", line \d+, in .*\n +(\w+)', str(error), re.MULTILINE)
        kind, _, said = str(error).strip().splitlines()[-1].partition(": ")
        roots = [Path(sys.modules[name].__path__[0]) for name in ours]
        by_us = frames and frames[-1][1] == "raise" and any(Path(frames[-1][0]).is_relative_to(root) for root in roots)
        return f"error: {said}" if by_us and kind.rpartition(".")[2] in KINDS else None
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not isinstance(error, MISTAKES):
        return None
    module, code = trace.tb_frame.f_globals.get("__name__", ""), trace.tb_frame.f_code.co_code
    if module.partition(".")[0] not in ours or code[trace.tb_lasti] != dis.opmap["RAISE_VARARGS"]:
        return None
    return f"error: {' '.join(str(error.args[0] if isinstance(error, KeyError) else error).split())}"


if __name__ in ("__main__", "__mp_main__"):
    launch(globals())
