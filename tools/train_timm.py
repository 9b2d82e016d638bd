"""Train a timm classifier on long-tailed data, with Memory-based Jitter: ``python tools/train_timm.py --mbj``."""

import sys
from pathlib import Path

# A clone works without being installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mbj_plugin.tools.train_timm import main

if __name__ == "__main__":
    main()
