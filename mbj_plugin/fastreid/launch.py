"""`python -m mbj_plugin.fastreid.launch tools/train_net.py --config-file ...`: an unmodified fast-reid script, with us.

The script runs inside this module, as `__main__`. A process that it spawns (one per GPU) starts by running its parent's
main module again, which is this one, and so comes up with the plugin as well; under `runpy` it would come up without.
"""

import os
import sys

SCRIPT_VARIABLE = "MBJ_FASTREID_SCRIPT"  # how spawned processes know the script

if __name__ == "__main__":
    if len(sys.argv) < 2 or not os.path.isfile(sys.argv[1]):
        wrong = f"there is no file {sys.argv[1]}" if len(sys.argv) > 1 else "which script?"
        sys.exit(f"{wrong}\nusage: python -m mbj_plugin.fastreid.launch SCRIPT.py [arguments of the script]")
    del sys.argv[0]
    os.environ[SCRIPT_VARIABLE] = os.path.abspath(sys.argv[0])
    # As `python SCRIPT.py` does. The working directory stays behind it: a fast-reid checkout there goes before the
    # wheel, in spawned processes too.
    sys.path.insert(0, os.path.dirname(os.environ[SCRIPT_VARIABLE]))

if __name__ in ("__main__", "__mp_main__"):
    import mbj_plugin.fastreid  # noqa: F401

    __file__ = os.environ[SCRIPT_VARIABLE]
    with open(__file__, encoding="utf-8") as script:
        code = compile(script.read(), __file__, "exec")
    exec(code, globals())
