#!/usr/bin/env python3
"""Does more data jitter more? Section 3.1 of the paper on scikit-learn's digits, or on CIFAR with ``--data PATH``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.jitter.command import main

if __name__ == "__main__":
    main()
