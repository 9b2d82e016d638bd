#!/usr/bin/env python3
"""Train or evaluate with fast-reid and the plugin: fast-reid's train_net.py, for those who have only its wheel."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mbj_plugin.tools.fastreid.train import main

if __name__ == "__main__":
    main()
