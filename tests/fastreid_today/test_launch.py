"""What a launched script's errors look like: one line for a user's mistake, and nobody else's."""

import importlib.util
import sys
import traceback

import pytest
from fastreid.config import get_cfg
from fastreid.data.datasets import DATASET_REGISTRY
from torch.multiprocessing import ProcessRaisedException

from fastreid_today import data, launch
from mbj_plugin.fastreid.config import checked


def said_of(call):
    try:
        call()
    except BaseException as error:
        return launch.one_line(error)
    return None


def test_mistakes_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv(launch.PLUGIN, "mbj_plugin.fastreid")
    (tmp_path / "two.yml").write_text("MODEL:\n  MBJ:\n    MEMORY: weights\n")
    for call, said in (
        (lambda: DATASET_REGISTRY.get("Markt1501"), "did you mean Market1501"),
        (lambda: DATASET_REGISTRY.get("Market1501")(root="nowhere"), "nowhere/"),
        (lambda: get_cfg().merge_from_list(["SOLVER.MAX_EPOCHS", 3]), "did you mean SOLVER.MAX_EPOCH"),
        (lambda: get_cfg().merge_from_list(["MODEL.MBJ.ETA", -1]), "MODEL.MBJ.ETA"),
        (lambda: get_cfg().merge_from_file(str(tmp_path / "two.yml")), "MODEL.MBJ.MEMORY"),
        (lambda: get_cfg().merge_from_file(str(tmp_path / "no.yml")), "no.yml"),
    ):
        line = said_of(call)
        assert line.startswith("error: ") and said in line and "\n" not in line
    monkeypatch.delenv(launch.PLUGIN)
    assert said_of(lambda: checked("ETA", -1)) is None  # only of what was asked for


def test_other_errors_keep_their_traceback(tmp_path, monkeypatch):
    assert said_of(lambda: int("three")) is None
    assert said_of(lambda: {}["backbone_ema"]) is None
    # What is not raised but happens in our own files is our bug.
    assert said_of(lambda: data.near(None, 3)) is None


@pytest.fixture
def launched(monkeypatch):
    """launched(SCRIPT): the launcher in this process."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(launch.fastreid_today, "AFTERWARDS", [])
    for name in (launch.SCRIPT, launch.PLUGIN):
        monkeypatch.setenv(name, "")

    def run(script):
        monkeypatch.setattr(sys, "argv", ["launch", str(script)])
        launch.launch({"__name__": "__main__", "__spec__": importlib.util.find_spec("fastreid_today.launch")})

    return run


def test_the_traceback_on_demand(launched, monkeypatch, tmp_path):
    script = tmp_path / "own.py"
    script.write_text("from fastreid.config import get_cfg\nget_cfg().merge_from_list(['SOLVER.BASE_LR', 'fast'])\n")
    with pytest.raises(SystemExit, match="^error: .*SOLVER.BASE_LR"):
        launched(script)
    monkeypatch.setenv(launch.TRACEBACK, "1")
    with pytest.raises(ValueError, match=r"SOLVER.BASE_LR"):
        launched(script)


def test_how_it_is_called(launched):
    with pytest.raises(SystemExit, match="there is no file nothing.py\nusage: python -m fastreid_today.launch"):
        launched("nothing.py")


def test_a_program_with_an_error_of_its_own(launched, tmp_path):
    assert sys.excepthook is sys.__excepthook__  # so without the launcher it has its traceback as well
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils" / "checkpoint.py").write_text("def load():\n    raise KeyError('backbone_ema')\n")
    (tmp_path / "own.py").write_text("import fastreid.config\nfrom utils.checkpoint import load\nload()\n")
    with pytest.raises(KeyError, match="backbone_ema"):
        launched(tmp_path / "own.py")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: DATASET_REGISTRY.get("Markt1501"), "error: there is no 'Markt1501' in"),
        (lambda: int("three"), None),
        (lambda: data.near(None, 3), None),
    ],
)
def test_a_spawned_rank(call, said):
    """It comes as text, its traceback below the spawned process's own."""
    with pytest.raises(Exception) as raised:
        call()
    text = "".join(traceback.format_exception(raised.value))
    line = launch.one_line(
        ProcessRaisedException(f"\n\n-- Process 1 terminated with the following error:\n{text}", 1, 1)
    )
    assert line is None if said is None else line.startswith(said) and "\n" not in line
