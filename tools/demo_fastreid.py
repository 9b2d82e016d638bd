#!/usr/bin/env python3
"""Draw a synthetic re-ID set, train and evaluate fast-reid's baseline and MBJ on it, a few minutes on a CPU."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mbj_plugin.tools.fastreid.demo import main

if __name__ == "__main__":
    main()
