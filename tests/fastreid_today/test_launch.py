"""What a launched script's errors look like: one line for a user's mistake, and nobody else's."""

import pytest
from fastreid.config import get_cfg
from fastreid.data.datasets import DATASET_REGISTRY

from fastreid_today import launch, messages
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
    assert said_of(lambda: messages.near(None, 3)) is None


PROGRAM = "import fastreid.config\nfrom utils.checkpoint import load\nload()\n"


@pytest.mark.parametrize(
    "start",
    [["-m", "mbj_plugin.fastreid.launch"], ["-c", "import mbj_plugin.fastreid, runpy; runpy.run_path('own.py')"]],
)
def test_a_program_with_an_error_of_its_own(command, tmp_path, start):
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils" / "checkpoint.py").write_text("def load():\n    raise KeyError('backbone_ema')\n")
    (tmp_path / "own.py").write_text(PROGRAM)
    path = f"{launch.fastreid_today.__path__[0]}/..:{tmp_path}"
    result = command(*start, *(["own.py"] if start[0] == "-m" else []), cwd=tmp_path, check=False, path=path)
    assert result.returncode == 1 and "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1] == "KeyError: 'backbone_ema'"


def test_spawned_ranks_and_the_traceback_on_demand(command, script, tiny_opts, tmp_path):
    odd = ("DATALOADER.SAMPLER_TRAIN", "NaiveIdentitySampler", "DATALOADER.NUM_INSTANCE", "3")
    arguments = (script, "--num-gpus", "2", "--config-file", tmp_path / "config.yml", *tiny_opts, *odd)
    result = command("-m", "mbj_plugin.fastreid.launch", *arguments, cwd=tmp_path, check=False)
    assert result.returncode == 1 and "Traceback" not in result.stderr + result.stdout
    assert result.stderr.splitlines()[-1].startswith("error: NaiveIdentitySampler ")
    wrong = ("--config-file", tmp_path / "config.yml", "SOLVER.BASE_LR", "-1")
    result = command("-m", "fastreid_today.launch", script, *wrong, cwd=tmp_path, check=False, MBJ_TRACEBACK="1")
    assert result.returncode == 1 and "Traceback" in result.stderr and "SOLVER.BASE_LR" in result.stderr


def test_how_it_is_called(command, tmp_path):
    result = command("-m", "mbj_plugin.fastreid.launch", "nothing.py", cwd=tmp_path, check=False)
    assert result.returncode and "nothing.py" in result.stderr and "-m mbj_plugin.fastreid.launch" in result.stderr
