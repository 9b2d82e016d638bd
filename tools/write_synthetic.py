#!/usr/bin/env python3
"""Draw a small synthetic re-ID data set in the folder layout of Market-1501, to try a run without a data set.

python tools/write_synthetic.py FOLDER
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.retrieval.synthetic import draw_dataset
from mbj_plugin.tools.parser import OneLineParser

if __name__ == "__main__":
    parser = OneLineParser(description="Draw figures as a re-ID data set. Numbers on it say nothing about real images.")
    parser.add_argument("folder", help="where to; then name it in FASTREID_DATASETS")
    print(f"Drawn: {draw_dataset(parser.parse_args().folder)}")
