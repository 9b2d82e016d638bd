#!/usr/bin/env python3
"""Once: two names of one method in the rows of retrieval become one.

python tools/rename_rows.py docs/results/retrieval.jsonl
"""

import sys
from pathlib import Path

for name in sys.argv[1:]:
    path = Path(name)
    text = path.read_text().replace('"method":"mbj_w_max_eta3"', '"method":"mbj_w"')
    path.write_text(text.replace('"method":"mbj_w_sum_start0"', '"method":"mbj_w_paper"'))
