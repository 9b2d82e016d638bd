"""What costs nothing after training, side by side, for one run folder: ``python tools/after_training.py RUN``."""

import sys
from pathlib import Path

# A clone works without being installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mbj_plugin.tools.adjust import main

if __name__ == "__main__":
    main()
