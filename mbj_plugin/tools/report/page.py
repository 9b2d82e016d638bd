"""The page: sections of figures, tables and notes as one HTML file that opens offline."""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass, field
from pathlib import Path

# Figures are 960 pixels wide and drawn to be read at 340: two or three columns on a desk, one on a phone.
CSS = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1200px; padding: 16px; background: #fff; color: #1a1a1a;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 8px; }
h2 { font-size: 1.25rem; margin: 40px 0 8px; padding-top: 12px; border-top: 2px solid #d0d0d0; }
p, ul { max-width: 75ch; margin: 8px 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); gap: 16px;
  margin: 16px 0; align-items: start; }
figure { margin: 0; border: 1px solid #e0e0e0; border-radius: 6px; padding: 8px; max-width: 620px; }
.large { grid-template-columns: repeat(auto-fill, minmax(min(100%, 480px), 1fr)); }
img { max-width: 100%; }
figure img { width: 100%; height: auto; display: block; }
figcaption { font-size: 0.875rem; color: #444; margin-top: 6px; }
.scroll { overflow-x: auto; margin: 12px 0; }
table { border-collapse: collapse; font-size: 0.9375rem; }
th, td { padding: 5px 12px; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 8em; }
thead th { border-bottom: 2px solid #888; }
caption { text-align: left; font-size: 0.875rem; color: #444; padding-bottom: 4px; }
.missing { background: #fff6e5; border-left: 4px solid #b35c00; padding: 8px 12px 8px 32px; }
@media (max-width: 600px) { th, td { padding: 4px 6px; font-size: 0.875rem; white-space: normal; }
  th:first-child, td:first-child { min-width: 5em; } }
summary { cursor: pointer; padding: 6px 0; }
"""


@dataclass
class Figure:
    """A PNG, what it shows for those who do not see it, and the line below it."""

    path: Path
    alt: str
    caption: str


@dataclass
class Table:
    """Cells as text, the first column the rows' names; ``folded`` hides it behind its caption."""

    header: list[str]
    rows: list[list[str]]
    caption: str = ""
    folded: bool = False


@dataclass
class Section:
    """A part of the page. ``gaps`` are lines on what is not there; ``large`` figures stand two to a row."""

    title: str
    text: str = ""
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    large: bool = False


def escape(text: str) -> str:
    """Text for the page; what XML cannot hold (control characters, halves of surrogate pairs) is a question mark."""
    return html.escape("".join(c if c.isprintable() or c in "\n\t" else "?" for c in text))


def render(title: str, subtitle: str, sections: list[Section]) -> str:
    """The page, well-formed XML as well as HTML, with every image inside and no address outside."""
    body = "\n".join(_section(section) for section in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        f"<main>\n<h1>{escape(title)}</h1>\n<p>{escape(subtitle)}</p>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>"]
    parts += [f"<p>{escape(section.text)}</p>"] if section.text else []
    parts += [_table(table, section.title) for table in section.tables]
    if section.figures:
        large = " large" if section.large else ""
        parts.append(f'<div class="figures{large}">\n' + "\n".join(map(_figure, section.figures)) + "\n</div>")
    if section.gaps:
        items = "".join(f"<li>{escape(gap)}</li>" for gap in section.gaps)
        parts.append(f'<ul class="missing">{items}</ul>')
    return "<section>\n" + "\n".join(parts) + "\n</section>"


def _figure(figure: Figure) -> str:
    data = base64.b64encode(figure.path.read_bytes()).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{escape(figure.alt)}"/>'
        f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
    )


def _table(table: Table, title: str) -> str:
    """The table in a box of its own that scrolls, also by the keyboard; ``title`` is its section's."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    rows = "".join(
        f'<tr><th scope="row">{escape(first)}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in rest) + "</tr>\n"
        for first, *rest in table.rows
    )
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption and not table.folded else ""
    box = f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(table.caption or title)}">'
    table_ = f"{box}<table>{caption}<thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></div>"
    return f"<details><summary>{escape(table.caption)}</summary>{table_}</details>" if table.folded else table_


def merged(lines: list[tuple[str, str]]) -> list[str]:
    """Lines on what is not there, of (run, line) pairs; runs of which the same is to be said share one."""
    who: dict[str, list[str]] = {}
    for run, line in lines:
        who.setdefault(line, []).append(run)
    return [f"{', '.join(dict.fromkeys(runs))}: {line}" for line, runs in who.items()]
