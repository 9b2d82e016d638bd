"""The notebooks run from top to bottom, draw what they show, and lie here with their pictures."""

import json
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.in_fork import in_fork

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
# Pictures of each cell that draws any.
PICTURES = {"timm": [4, 2, 1], "fastreid": [2, 2]}


def run(cells, folder):
    """Write the number of pictures that each cell displays."""
    shown, counts, names = [], [], {}
    display = ModuleType("IPython.display")
    display.display = shown.append
    sys.modules["IPython.display"] = display
    os.chdir(folder)
    for cell in cells:
        before = len(shown)
        exec("".join(cell["source"]), names)
        counts.append(len(shown) - before)
    (folder / "counts.json").write_text(json.dumps(counts))


@pytest.mark.parametrize("name", PICTURES)
def test_notebook(name, tmp_path):
    pytest.importorskip(name)
    path = NOTEBOOKS / f"{name}.ipynb"
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    stored = [sum("image/png" in output.get("data", {}) for output in cell["outputs"]) for cell in cells]
    assert [count for count in stored if count] == PICTURES[name] and path.stat().st_size < 400_000
    done = in_fork(tmp_path, lambda: run(cells, tmp_path))
    assert done.status == 0, done.err
    assert json.loads((tmp_path / "counts.json").read_text()) == stored
