"""Run timm's own ``train.py``, unmodified, with MBJ: ``python -m mbj_plugin.timm.launch train.py [arguments]``."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def main() -> None:
    """Import :mod:`mbj_plugin.timm.enable`, then run the script that the first argument names."""
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_file():
        got = sys.argv[1] if len(sys.argv) > 1 else "nothing"
        sys.exit(f"usage: python -m mbj_plugin.timm.launch TRAIN.PY [its arguments]; got {got}, which is no file")
    import mbj_plugin.timm.enable  # noqa: F401

    script = sys.argv[1]
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(script).resolve().parent)  # as Python does for a script
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
