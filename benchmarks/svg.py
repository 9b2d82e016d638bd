"""Figures that are kept in git: the same rows give the same file, and text stays text, which keeps it small."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

#: Decorates a function that draws.
svg_style = matplotlib.rc_context({"svg.hashsalt": "mbj", "svg.fonttype": "none", "font.size": 8})


def save_svg(figure: Figure, path: Path) -> None:
    """Without the date."""
    figure.savefig(path, format="svg", metadata={"Date": None})
