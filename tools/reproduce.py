#!/usr/bin/env python3
"""Run cells of the paper's classification tables, and make the results page from them.

    python tools/reproduce.py --data FOLDER --group cpu_main
    python tools/reproduce.py --data FOLDER --protocol cpu --methods ce mbj --seeds 0 1 2
    python tools/reproduce.py --report

A finished cell is never run again; an interrupted one goes on where it was saved.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.classification.command import main

if __name__ == "__main__":
    main()
