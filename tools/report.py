#!/usr/bin/env python3
"""One HTML page on one or more run folders: ``python tools/report.py RUN [RUN ...]``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mbj_plugin.tools.report import main

if __name__ == "__main__":
    main()
