"""A run's folder: not written over, not trained into twice at once, gone on with by the same classes alone."""

import json
import subprocess
import sys
from argparse import Namespace

import pytest
from fastreid.engine import default_setup

from mbj_plugin.fastreid import run_folder


@pytest.fixture
def finished(make_trainer, tmp_path):
    """The folder of a finished run, and its scores."""
    scores = make_trainer("SOLVER.MAX_EPOCH", 2, "TEST.EVAL_PERIOD", 1).train()
    return tmp_path / "out", scores


def test_a_finished_run_is_not_written_over(finished, make_trainer, make_cfg):
    folder, scores = finished
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=f"OUTPUT_DIR {folder} .*--resume"):
        make_trainer().train()
    with pytest.raises(ValueError, match=f"OUTPUT_DIR {folder}"):
        default_setup(make_cfg(), Namespace(resume=False, eval_only=False, config_file=""))
    other = ("DATASETS.NAMES", ("Market1501_LT_H2_S1",), "SOLVER.MAX_EPOCH", 3, "MODEL.HEADS.NUM_CLASSES", 24)
    with pytest.raises(ValueError, match="memory is of 24 classes"):
        make_trainer(*other).resume_or_load(resume=True)
    trainer = make_trainer(*other, "MODEL.HEADS.NAME", "EmbeddingHead")
    trainer.resume_or_load(resume=True)
    with pytest.raises(ValueError, match="Market1501_LT_H2_S1.* had 2 images and has 1"):
        trainer.train()
    for name in ("model_final.pth", "metrics.json", "classes.json"):
        assert (folder / name).read_bytes() == before[name], name
    # Each evaluation is in the run's file, with its iteration; the last as well.
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    found = {row["iteration"]: row["mAP"] for row in rows if "mAP" in row}
    assert list(found) == [8, 17] and found[17] == pytest.approx(float(scores["mAP"]))
    assert rows[-1]["iteration"] == 17 and "total_loss" not in rows[-1] and "total_loss" in rows[-2]
    sizes = run_folder.read_classes(folder)
    assert sorted(sizes.values()) == [2] * 20 + [8] * 4 and "market1501_1" in sizes
    trainer = make_trainer("SOLVER.MAX_EPOCH", 3)
    trainer.resume_or_load(resume=True)
    trainer.train()


def test_an_evaluation_leaves_the_runs_config_as_it_is(make_cfg, tmp_path):
    config = tmp_path / "out" / "config.yaml"
    config.parent.mkdir()
    config.write_text("the run's")
    (tmp_path / "out" / "last_checkpoint").write_text("model_final.pth")
    default_setup(make_cfg(), Namespace(resume=False, eval_only=True, config_file=""))
    assert config.read_text() == "the run's"


def test_another_process_in_the_folder(make_cfg, tmp_path):
    cfg = make_cfg("OUTPUT_DIR", str(tmp_path))
    code = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], 0), fcntl.LOCK_EX); print(1, flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None and other.stdout.readline()
        with pytest.raises(ValueError, match=f"another process .* {tmp_path}"):
            run_folder.claim(cfg, resumes=False)
    finally:
        other.communicate(b"\n")
    run_folder.claim(cfg, resumes=False)


def test_sets_that_number_their_identities(make_trainer, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(run_folder.logger, "warning", said.append)
    trainer = make_trainer()
    run_folder.begin(trainer, 0)
    assert not said
    trainer.cfg.defrost()
    trainer.cfg.DATASETS.NAMES = ("Mine", "Yours")
    dataset = trainer.data_loader.dataset
    dataset.pids = list(range(24))
    dataset.img_items = [(path, dataset.pid_dict[pid], camera) for path, pid, camera in dataset.img_items]
    run_folder.begin(trainer, 0)
    assert "Mine and Yours" in said[0] and "24 classes" in said[0]
