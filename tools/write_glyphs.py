#!/usr/bin/env python3
"""Render the glyphs of many fonts in the folder layout of Market-1501.

python tools/write_glyphs.py /usr/share/fonts FOLDER
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.retrieval.glyphs import write_dataset
from mbj_plugin.command_line import one_line
from mbj_plugin.tools.parser import OneLineParser

if __name__ == "__main__":
    parser = OneLineParser(description="Render Latin, Greek and Cyrillic in many fonts as a re-ID data set.")
    parser.add_argument("fonts", help="folder of .ttf and .otf files (CONTRIBUTING.md says which were measured)")
    parser.add_argument("folder", help="where to; then name it in FASTREID_DATASETS")
    args = parser.parse_args()
    with one_line("write_glyphs", also="benchmarks"):
        written, rendered = write_dataset(args.fonts, args.folder)
        print(f"Glyphs: {written}, {len(rendered.characters)} characters in {len(rendered.families)} families")
        print("\n".join(rendered.families))
