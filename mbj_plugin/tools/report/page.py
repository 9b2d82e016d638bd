"""The page: sections of figures, tables and notes, as one HTML file that opens offline; its template is page.html."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader


@dataclass
class Picture:
    """A PNG with the name of its file, what it shows in a few words, and the line below it."""

    name: str
    title: str
    caption: str
    png: bytes


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
    figures: list[Picture] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    large: bool = False

    def __bool__(self) -> bool:
        return bool(any(table.rows for table in self.tables) or self.figures or self.gaps)


def render(title: str, verdict: list[str], sections: list[Section]) -> str:
    """The page, well-formed XML as well as HTML, with every image inside and no address outside."""
    # What XML cannot hold (control characters, halves of surrogate pairs) is a question mark.
    printable = lambda value: "".join(c if c.isprintable() or c in "\n\t" else "?" for c in str(value))  # noqa: E731
    pages = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, finalize=printable)
    pages.filters["b64encode"] = lambda data: base64.b64encode(data).decode()
    return pages.get_template("page.html").render(title=title, verdict=verdict, sections=sections)
