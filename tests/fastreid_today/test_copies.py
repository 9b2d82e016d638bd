"""fast-reid inside another package: an unmodified program that carries it trains, and nothing is loaded twice."""

import importlib.util
import re
import shutil
from pathlib import Path

import pytest

import fastreid_today
from fastreid_today import changes, copies, doctor

SCRIPT = """
import sys
sys.path.append('.')
from tracker.reid.fastreid.config import get_cfg
from tracker.reid.fastreid.engine import DefaultTrainer
from tracker.reid.fastreid.modeling.heads import REID_HEADS_REGISTRY
import tracker.reid.fastreid.utils.comm as comm
import fastreid.engine, torch

if __name__ == "__main__":
    assert fastreid.engine.DefaultTrainer is DefaultTrainer and fastreid.utils.comm is comm
    assert fastreid.engine.__spec__.name == "fastreid.engine"
    cfg = get_cfg()
    cfg.merge_from_list(sys.argv[1:])
    trainer = DefaultTrainer(cfg)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    moved = [not torch.equal(value, before[name]) for name, value in trainer.model.named_parameters()]
    print("moved", sum(moved) / len(moved), "heads", "MBJHead" in REID_HEADS_REGISTRY._obj_map)
"""


@pytest.fixture
def project(tmp_path):
    """A tracker that carries fast-reid as tracker.reid.fastreid, with its import lines made its own but for one."""
    wheel = Path(importlib.util.find_spec("fastreid").origin).parent
    copy = tmp_path / "tracker" / "reid" / "fastreid"
    shutil.copytree(wheel, copy, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for file in copy.rglob("*.py"):
        if file.name != "comm.py":
            text = re.sub(
                r"^(\s*(?:from|import)) fastreid\b", r"\1 tracker.reid.fastreid", file.read_text(), flags=re.M
            )
            file.write_text(text)
    (tmp_path / "train.py").write_text(SCRIPT)
    return tmp_path


def options(tiny_opts, tmp_path, **others):
    words = dict(zip(tiny_opts[::2], tiny_opts[1::2], strict=True)) | {"OUTPUT_DIR": str(tmp_path / "out")} | others
    return [word for pair in words.items() for word in pair]


def test_a_vendored_copy_trains_with_every_head(command, project, tiny_opts):
    result = command("-m", "mbj_plugin.fastreid.launch", "train.py", *options(tiny_opts, project), cwd=project)
    moved = float(re.search(r"^moved (.*) heads True$", result.stdout, re.MULTILINE)[1])
    assert moved > 0.9 and "mAP" in result.stdout and "loss_mbj" in result.stdout
    told = [line for line in result.stderr.splitlines() if "tracker.reid.fastreid" in line]
    assert str(project / "tracker/reid/fastreid") in told[0]


def test_one_that_comes_second_is_told_of_once(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(copies.logger, "warning", lambda text, *values: said.append(text % values))
    for folder in ("fastreid/engine", "other/fastreid"):  # the second is none: it lacks engine/defaults.py
        (tmp_path / folder).mkdir(parents=True)
    for file in ("fastreid/__init__.py", "fastreid/engine/defaults.py", "other/fastreid/__init__.py"):
        (tmp_path / file).touch()
    finder = fastreid_today.FINDER
    monkeypatch.setattr(finder, "refused", set())
    for _ in range(2):
        assert finder.find_spec("tracker.fastreid", [str(tmp_path)]) is None
        assert finder.find_spec("tracker.other.fastreid", [str(tmp_path / "other")]) is None
    assert len(said) == 1 and "tracker.fastreid is a second fast-reid" in said[0] and "fastreid_today.launch" in said[0]


def test_the_doctor_tells_what_it_found(command, project):
    assert doctor.find_copies(project) == {"tracker.reid.fastreid": project}
    arguments = ("-m", "fastreid_today.doctor", "--plugin", "mbj_plugin.fastreid", project)
    report = command(*arguments, cwd=project).stdout
    assert f"fast-reid comes from {project / 'tracker/reid/fastreid/__init__.py'}" in report
    assert "torch " in report and "Fast evaluation: " in report
    for name, status in changes.STATUS.items():
        assert f"{name}: {status}" in report
    as_it_came, repaired = report.partition("Without the repairs")[2].split("With `import fastreid_today`")
    assert "import tracker.reid.fastreid.engine: fails" in as_it_came and "engine: works" in repaired
    assert "in fp32: changes the weights" in repaired


def test_the_doctor_of_a_folder_without_fastreid(capsys, tmp_path):
    assert doctor.main([str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().out
