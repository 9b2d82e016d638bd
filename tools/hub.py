"""A finished run as a folder that stock timm loads: ``python tools/hub.py RUN FOLDER``."""

import sys
from pathlib import Path

# A clone works without being installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mbj_plugin.tools.hub import main

if __name__ == "__main__":
    main()
