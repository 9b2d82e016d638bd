#!/usr/bin/env python3
"""Write the tables of pages: settings and changes to fast-reid from the code, others and a figure from rows.

python tools/write_pages.py
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.classification import digits, finetune  # noqa: E402
from mbj_plugin.settings import RULES, MBJSettings  # noqa: E402

# fast-reid's head has one classifier, and fast-reid counts the images itself.
TIMM_ONLY = ("classifier", "classifier_loss", "class_counts")


def settings_table() -> str:
    """Markdown: each setting of MBJ with its names and defaults in both hosts, and its meaning."""
    timm, fastreid = MBJSettings.preset("classification"), MBJSettings.preset("retrieval")
    rows = ["| timm | default | fast-reid | default | Meaning |", "|---|---|---|---|---|"]
    for name, rule in RULES.items():
        cells = [f"`--mbj-{name.replace('_', '-')}`", _shown(getattr(timm, name))]
        cells += ["", ""] if name in TIMM_ONLY else [f"`{name.upper()}`", _shown(getattr(fastreid, name))]
        rows.append("| " + " | ".join([*cells, rule.help]) + " |")
    return "\n".join(rows)


def _shown(value: object) -> str:
    return "" if value is None else f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def repairs_table() -> str:
    """Markdown: each change to a running fast-reid, what a user sees without it, what it does, and when it acts."""
    import mbj_plugin.fastreid  # noqa: F401
    from fastreid_today import MODULES
    from fastreid_today.changes import CHANGES

    order = [f"fastreid_today.{name}" for name in MODULES]
    ours = sorted((entry for entry in CHANGES.values() if entry.by in order), key=lambda entry: order.index(entry.by))
    rows = ["| Repair | What you see without it | What it does | In fast-reid's file | Acts |", "|---|---|---|---|---|"]
    for entry in [*ours, *(entry for entry in CHANGES.values() if entry.by not in order)]:
        acts = "with MBJ" if entry.by not in order else "everywhere" if entry.gpu else "without CUDA"
        rows.append(f"| `{entry.name}` | {entry.what_for} | {entry.text} | `{entry.file}` | {acts} |")
    return "\n".join(rows).replace("<H, S>", "&lt;H, S>")


TABLES = {
    "settings": ("docs/settings.md", settings_table),
    "repairs": ("docs/results/fastreid-changes.md", repairs_table),
    "digits": ("docs/results/digits.md", digits.table),
    "finetune": ("docs/results/finetune.md", finetune.table),
}


def filled(page: str, name: str, table: str) -> str:
    """``page`` with ``table`` between the two comments that name it."""
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    before, after = re.fullmatch(f"(.*{begin}).*({end}.*)", page, re.DOTALL).groups()
    return f"{before}\n{table}\n\n{after}"


def main() -> None:
    """Write each table into its page, and draw the digits."""
    digits.draw(ROOT / digits.FIGURE, ROOT / digits.ROWS)
    for name, (file, table) in TABLES.items():
        path = ROOT / file
        path.write_text(filled(path.read_text(encoding="utf-8"), name, table()), encoding="utf-8")


if __name__ == "__main__":
    main()
