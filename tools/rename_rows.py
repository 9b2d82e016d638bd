#!/usr/bin/env python3
"""Once: rows of `mbj_late_sum` are rows of `mbj_sum`, whose name says what it is. For any file of rows.

python tools/rename_rows.py docs/results/classification.jsonl
"""

import sys
from pathlib import Path

for name in sys.argv[1:]:
    path = Path(name)
    path.write_text(path.read_text().replace('"method":"mbj_late_sum"', '"method":"mbj_sum"'))
