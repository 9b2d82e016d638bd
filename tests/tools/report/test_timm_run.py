"""The report on real runs of train_timm, whole and broken."""

import json
import shutil
from argparse import Namespace

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("matplotlib")

from sklearn.metrics import confusion_matrix

from mbj_plugin.tools.finished_run import FinishedRun
from mbj_plugin.tools.report import main
from mbj_plugin.tools.report.run import RunRecord
from mbj_plugin.tools.report.timm_run import read_run
from mbj_plugin.tools.trainer import train


def read(folder, use_model=True, data=None):
    run = RunRecord("run")
    read_run(run, folder, Namespace(device="cpu", data=data, no_model=not use_model))
    return run


def test_a_whole_run_is_read_whole(digit_runs):
    run = read(digit_runs / "mbj")
    results = json.loads((digit_runs / "mbj" / "results.json").read_text())
    assert run.missing == []
    filled = [row["mbj/feature/fill"] for row in run.diagnostics]
    assert len(filled) == 6 and filled[-1] == pytest.approx(int(run.memories["feature"].filled) / 500)
    # The model, run again, makes the errors that training reported.
    matrix = confusion_matrix(run.truth, run.classifiers[run.chosen].answers)
    wrong = 100 * (1 - np.diag(matrix) / matrix.sum(1))
    np.testing.assert_allclose(wrong, results["per_class_error"], atol=1e-6)
    np.testing.assert_allclose(run.classifiers["memory"].by_class, results["per_class_error"], atol=1e-6)
    baseline = json.loads((digit_runs / "baseline" / "results.json").read_text())
    assert run.classifiers["batch"].errors == pytest.approx(baseline["errors"])
    assert list(run.classifiers) == ["batch", "batch_adjusted", "memory"] and run.chosen == "memory"
    saved = torch.load(digit_runs / "mbj" / "last.pth.tar", weights_only=False)["task_state"]["mbj"]
    assert run.memories["feature"].filled == (saved["feature.bank.slot_labels"] >= 0).sum() > 0
    errors = {run.classifiers[key].name: each["errors"]["error"] for key, each in results["classifiers"].items()}
    drawn = {name: ys[-1] for name, (_, ys) in run.curves["error"].items()}
    assert drawn == pytest.approx(errors | {"": results["errors"]["error"]})
    assert run.curves["error"][""][0] == [0, 1, 2, 3, 4, 5]  # as log, summary.csv and checkpoints count them
    assert run.curves["tail error"][""][1][-1] == pytest.approx(results["errors"]["tail"])
    assert run.facts["checkpoint"] == "last.pth.tar of epoch 5"
    assert run.class_name(3) == "digit 3"


def test_a_baseline_has_no_memory_and_a_page_beside_mbj(digit_runs, tmp_path):
    assert read(digit_runs / "baseline", use_model=False).memories == {}
    main([str(digit_runs), "--no-model", "--output", str(tmp_path)])
    text = (tmp_path / "report.html").read_text()
    assert "Training report: baseline and mbj" in text and "mbj: MBJ" in text
    assert "Confusion" not in text


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("broken", "said", "still_there"),
    [
        ("results.json", "results.json: ", ("classifiers", "truth", "curves", "memories")),
        ("last.pth.tar", "checkpoint: cannot read", ("classifiers", "curves")),
        ("args.yaml", "confusion: ", ("classifiers", "curves", "memories")),
        ("summary.csv", "curves (summary.csv): ", ("classifiers", "truth", "memories")),
    ],
)
@pytest.mark.parametrize("how", ["truncated", "missing"])
def test_a_broken_part_costs_that_part_and_a_line(mbj_run, broken, said, still_there, how):
    if how == "missing":
        (mbj_run / broken).unlink()
        if broken == "last.pth.tar":
            (mbj_run / "model_best.pth.tar").unlink()
            said = "checkpoint: there is no last.pth.tar"
    elif broken in ("summary.csv", "args.yaml"):
        (mbj_run / broken).write_bytes(b"\xff\xfe: [")
    else:
        truncate(mbj_run / broken)
    run = read(mbj_run)
    assert [line for line in run.missing if said in line], run.missing
    for part in still_there:
        assert len(getattr(run, part)), part


def test_a_folder_of_timm_s_train_py_is_read_with_timm_s_defaults(mbj_run):
    args = yaml.safe_load((mbj_run / "args.yaml").read_text())
    ours = {"imbalance_ratio", "subset_seed", "crop_pad", "loss", "config", "mbj_class_counts", "data"}
    (mbj_run / "args.yaml").write_text(yaml.safe_dump({k: v for k, v in args.items() if k not in ours}))
    (mbj_run / "results.json").unlink()
    assert read(mbj_run).class_counts.min() > 100  # of the whole training part, nothing cut


def test_a_class_without_test_images_has_no_error(mbj_run, monkeypatch):
    outputs = FinishedRun.outputs

    def without_class_3(self, loader):
        for labels, *rest in outputs(self, loader):
            yield labels[labels != 3], *(part[labels != 3] for part in rest[:2]), rest[2]

    monkeypatch.setattr(FinishedRun, "outputs", without_class_3)
    results = json.loads((mbj_run / "results.json").read_text())
    results["classifiers"]["memory"]["per_class_error"][3] = None
    (mbj_run / "results.json").write_text(json.dumps(results))
    for use_model in (True, False):
        missing = np.isnan(read(mbj_run, use_model).classifiers["memory"].by_class)
        assert np.flatnonzero(missing).tolist() == [3]


def test_without_results_the_errors_come_from_the_model(mbj_run):
    expected = read(mbj_run).classifiers["memory"].errors
    (mbj_run / "results.json").unlink()
    found = read(mbj_run).classifiers["memory"].errors
    assert found == pytest.approx({name: expected[name] for name in found}) and len(found) == 7


def test_a_model_that_does_not_make_the_reported_error_is_told(mbj_run):
    results = json.loads((mbj_run / "results.json").read_text())
    results["classifiers"]["memory"]["errors"]["error"] += 3
    (mbj_run / "results.json").write_text(json.dumps(results))
    assert "the checkpoint is of another epoch" in " ".join(read(mbj_run).missing)


def test_images_that_are_gone_are_a_line_and_data_finds_them(image_folder, tmp_path):
    flags = "--val-split validation --epochs 1 --decay-milestones 1 --warmup-epochs 0 --imbalance-ratio 2 -b 4 -j 0"
    flags += " --input-size 3 16 16 --mean 0.5 0.5 0.5 --std 0.2 0.2 0.2 --no-progress -c digits"
    data = shutil.copytree(image_folder, tmp_path / "data")
    places = ["--data-dir", str(data), "--dataset", "", "--output", str(tmp_path), "--experiment", "run"]
    train.main([*flags.split(), *places])
    shutil.move(data, tmp_path / "elsewhere")
    run = read(tmp_path / "run")
    assert "does not exist" in " ".join(run.missing) and run.truth is None and run.classifiers
    run = read(tmp_path / "run", data=str(tmp_path / "elsewhere"))
    assert len(run.truth) == 18 and run.class_names == ["class0", "class1", "class2"]


def test_a_classifier_of_cosines_is_shown_too(tmp_path):
    flags = ["--epochs", "1", "--decay-milestones", "1", "--warmup-epochs", "0", "--no-progress"]
    train.main(["--loss", "benchmarks.rivals.ldam:LDAMLoss", "--output", str(tmp_path), "--experiment", "run", *flags])
    run = read(tmp_path / "run")
    assert len(run.truth) == len(run.classifiers["batch"].answers) > 0
    (line,) = run.missing
    assert line.startswith("classifiers: ")  # none that could take its place


def test_a_report_downloads_nothing(mbj_run, monkeypatch):
    asked: list = []
    monkeypatch.setattr("socket.getaddrinfo", lambda *place, **more: asked.append(place))
    args = yaml.safe_load((mbj_run / "args.yaml").read_text())
    there = {"data_dir": str(mbj_run), "dataset": "torch/cifar10", "dataset_download": True}
    (mbj_run / "args.yaml").write_text(yaml.safe_dump(args | there))
    run = read(mbj_run)
    assert not asked and run.truth is None and run.classifiers
    assert [line for line in run.missing if "torch/cifar10" in line], run.missing
