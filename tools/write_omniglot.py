#!/usr/bin/env python3
"""Write Omniglot in the folder layout of Market-1501, for training and for validation.

python tools/write_omniglot.py images_background.zip FOLDER
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.retrieval.omniglot import SPLITS, write_dataset
from mbj_plugin.command_line import one_line
from mbj_plugin.tools.parser import OneLineParser

if __name__ == "__main__":
    parser = OneLineParser(description="Write Omniglot's background set as two re-ID data sets.")
    parser.add_argument("archive", help="the authors' images_background.zip, or an .npz of it (CONTRIBUTING.md)")
    parser.add_argument("folder", help="where to; then name it in FASTREID_DATASETS")
    args = parser.parse_args()
    with one_line("write_omniglot", also="benchmarks"):
        for kind in SPLITS:
            print(f"{kind.__name__}: {write_dataset(args.archive, args.folder, kind)}")
