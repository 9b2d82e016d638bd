#!/usr/bin/env python3
"""Run cells of the retrieval tables in fast-reid, and make their section of the results page.

    python tools/write_omniglot.py omniglot.npz FOLDER
    python tools/reproduce_retrieval.py --data FOLDER --group omniglot_h20
    python tools/reproduce_retrieval.py --report

A finished cell is never run again; one that was cut short starts again.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.retrieval.command import main

if __name__ == "__main__":
    main()
