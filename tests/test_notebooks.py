"""The notebooks run from top to bottom, draw what they show, and lie here with their pictures."""

from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
nbformat = pytest.importorskip("nbformat")

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
# Pictures of each cell that draws any.
PICTURES = {"timm": [4, 2, 2], "fastreid": [2, 3]}


def pictures(notebook):
    """Number of pictures below each cell that has some."""
    cells = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    counts = [sum("image/png" in output.get("data", {}) for output in outputs) for outputs in cells]
    return [count for count in counts if count]


@pytest.mark.parametrize("name", PICTURES)
def test_notebook(name, tmp_path, monkeypatch):
    if name == "fastreid":
        pytest.importorskip("fastreid")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = NOTEBOOKS / f"{name}.ipynb"
    notebook = nbformat.read(path, 4)
    assert pictures(notebook) == PICTURES[name] and path.stat().st_size < 400_000
    for cell in notebook.cells:
        cell.pop("outputs", None)
        if cell.cell_type == "code":
            cell.outputs = []
    nbclient.NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert pictures(notebook) == PICTURES[name]
