"""The harness around the cells: the readers, who runs which, the rows, mistakes."""

import dataclasses
import hashlib
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torchvision
from drawn_images import drawn, write_npz

from benchmarks.cells import claimed, finished_cells, read_rows
from benchmarks.classification import runner
from benchmarks.classification.command import main
from benchmarks.classification.data import load_images
from benchmarks.classification.settings import Cell, load_settings
from mbj_plugin import exponential_subset

KEYS = {"dataset", "imbalance_ratio", "protocol", "method", "seed", "error", "head", "medium", "tail"}


@pytest.fixture
def npz(tmp_path):
    write_npz(tmp_path / "cifar10_lt.npz", drawn(size=32, per_class=(20,) * 10))
    return tmp_path


@pytest.fixture
def settings_file(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("""
protocols:
  tiny: {depth: 8, width: 4, epochs: 2, milestones: [1], warmup_epochs: 1, batch_size: 8, max_count: {cifar10_lt: 20}}
methods:
  ce: {}
  mbj: {memory: feature, norm: max}
  shared: {memory: feature, classifier: shared, norm: max}
groups:
  all: {datasets: [cifar10_lt], ratios: [10], protocol: tiny, methods: [ce, mbj, shared], seeds: [0, 1]}
""")
    return str(path)


def job(folder, settings_file, **kwargs):
    return runner.Job(str(folder), str(folder / "rows.jsonl"), str(folder / "state"), settings_file, **kwargs)


def test_cells_run_once_and_alike_whoever_runs_them(npz, settings_file, capfd, forked):
    cells, errors = load_settings(settings_file).group("all"), []
    for name, workers in {"one": {}, "processes": {"processes": 2}, "streams": {"streams": 2}}.items():
        one = dataclasses.replace(job(npz / name, settings_file, **workers), data=str(npz))
        assert runner.run_cells(cells, one) == 0
        rows = read_rows(one.results, Cell)
        assert len(rows) == 6 and finished_cells(one.results, Cell) == set(cells)
        assert all(set(row) >= KEYS for row in rows)
        assert capfd.readouterr().out.count(": error ") == 6
        assert runner.run_cells(cells, one) == 0
        assert read_rows(one.results, Cell) == rows
        # A run whose features others have used stays, for passengers to come; any other leaves nothing.
        assert sorted(path.name.split("-")[3] for path in Path(one.state_dir).glob("*.pt")) == ["ce", "ce"]
        errors.append({(row["method"], row["seed"]): row["per_class_error"] for row in rows})
    assert errors[0] == errors[1] == errors[2]


def test_out_of_time_leaves_the_cells_and_goes_on_later(npz, settings_file):
    cells = load_settings(settings_file).group("all")
    assert runner.run_cells(cells, job(npz, settings_file, deadline=0.0)) == 6
    assert runner.run_cells(cells, job(npz, settings_file)) == 0


def test_a_passenger_of_a_finished_run_does_not_train_it_again(npz, settings_file, monkeypatch):
    cells = load_settings(settings_file).group("all")[:2]
    runner.run_cells(cells, job(npz, settings_file))
    together = read_rows(npz / "rows.jsonl", Cell)
    monkeypatch.setattr(runner.CellRun, "_train_epoch", lambda self: pytest.fail("it trains again"))
    (npz / "rows.jsonl").write_text("")
    runner.run_cells(cells[1:], job(npz, settings_file))
    again = read_rows(npz / "rows.jsonl", Cell)
    assert [row | {"seconds": 0} for row in again] == [together[1] | {"seconds": 0}]


@pytest.mark.parametrize("before", [["ce"], ["ce", "mbj"], ["ce", "mbj", "no log"]])
def test_a_passenger_never_learns_from_a_log_with_a_gap(npz, settings_file, monkeypatch, before):
    cells = load_settings(settings_file).group("all")[:2]
    runner.run_cells(cells, job(npz, settings_file))
    wanted = read_rows(npz / "rows.jsonl", Cell)[1]
    (npz / "rows.jsonl").write_text("")
    shutil.rmtree(npz / "state")
    epoch = runner.CellRun._train_epoch
    monkeypatch.setattr(runner.CellRun, "train", stopped_after_one_epoch)
    for part in (cells[: len(before)], cells[:1]):  # one epoch, then none more, without a word of passengers
        runner.run_cells(part, job(npz, settings_file))
    if "no log" in before:
        shutil.rmtree(next((npz / "state").glob("*.features")))
    monkeypatch.undo()
    assert runner.CellRun._train_epoch is epoch
    runner.run_cells(cells, job(npz, settings_file))
    once = {"seconds": 0, "resumed": 0}
    assert read_rows(npz / "rows.jsonl", Cell)[1] | once == wanted | once


def stopped_after_one_epoch(run, state_file, deadline):
    if not state_file.exists():
        run._train_epoch()
        run.save(state_file)
    return False


def test_a_cell_that_another_worker_holds_is_left_alone(npz, settings_file):
    cells = load_settings(settings_file).group("all")[:1]
    (npz / "state").mkdir()
    with claimed(npz / "state" / f"{cells[0].file_name}.lock") as mine:
        assert mine
        assert runner.run_cells(cells, job(npz, settings_file)) == 1
    assert runner.run_cells(cells, job(npz, settings_file)) == 0


def test_a_row_of_other_settings_is_an_error(npz, settings_file):
    cells = load_settings(settings_file).group("all")[:1]
    runner.run_cells(cells, job(npz, settings_file))
    changed = Path(settings_file).read_text().replace("width: 4", "width: 5")
    Path(settings_file).write_text(changed)
    with pytest.raises(ValueError, match="other settings"):
        runner.run_cells(cells, job(npz, settings_file))


def test_npz_and_its_subsets(npz):
    images, expected = load_images("cifar10_lt", npz), drawn(size=32, per_class=(20,) * 10)
    assert np.array_equal(images.train, expected.train) and np.array_equal(images.test, expected.test)
    assert load_images("cifar10_lt", npz / "cifar10_lt.npz").sha256 == images.sha256
    subset = images.long_tailed(10)
    assert np.bincount(subset.train_labels).tolist() == [20, 15, 11, 9, 7, 5, 4, 3, 2, 2]
    smaller = images.long_tailed(10, max_count=10)
    assert np.bincount(smaller.train_labels)[0] == 10 and smaller.sha256 != subset.sha256
    assert (np.bincount(images.long_tailed(1).train_labels) == 20).all()
    with pytest.raises(ValueError, match="class 0 needs 30 images.*hold 20"):
        images.long_tailed(10, max_count=30)


def test_torchvision_layout(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    images = drawn(size=32, per_class=(4,) * 10)

    def write(name, content):
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    def batch(name, x, y):
        return name, write(name, {"data": x.transpose(0, 3, 1, 2).reshape(len(x), -1), "labels": y.tolist()})

    kind = torchvision.datasets.CIFAR10
    monkeypatch.setattr(kind, "train_list", [batch("data_batch_1", images.train, images.train_labels)])
    monkeypatch.setattr(kind, "test_list", [batch("test_batch", images.test, images.test_labels)])
    meta = {"label_names": [str(i) for i in range(10)]}
    monkeypatch.setattr(kind, "meta", dict(kind.meta, md5=write(kind.meta["filename"], meta)))
    read = load_images("cifar10_lt", tmp_path, seed=3)
    assert np.array_equal(read.train, images.train) and np.array_equal(read.test_labels, images.test_labels)
    chosen = exponential_subset(images.train_labels, 2, seed=3)
    assert np.array_equal(read.long_tailed(2).train, images.train[chosen])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "mjb"], "unknown method 'mjb', did you mean 'mbj'"),
        (["--group", "cpu_mian"], "did you mean 'cpu_main'"),
        (["--protocol", "gpu"], "unknown protocol 'gpu'"),
        (["--datasets", "mnist"], "unknown data set 'mnist'"),
        ([], "give --data"),
        (["--data", "nowhere"], "no images of cifar10_lt in nowhere"),
        (["--data", "nowhere", "--processes", "2"], "no images of cifar10_lt in nowhere"),
        (["--data", "x", "--processes", "0"], "processes must be >= 1"),
        (["--settings", "nowhere.yaml"], "cannot read the settings nowhere.yaml"),
    ],
)
def test_mistakes_on_the_command_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        main(arguments)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("norm: max", "nrom: max", "unknown setting of 'mbj' 'nrom', did you mean 'norm'"),
        ("milestones: [1]", "milestones: [9]", "first decay within the 2 epochs"),
        ("ce: {}", "ce: {loss: typo}", "unknown loss 'typo'"),
        ("ce: {}", "ce: {start: early}", "start must be 'decay'.*'early'"),
        ("epochs: 2, ", "", "missing.*epochs"),
        ("groups:", "gruops:", "groups, methods, protocols"),
    ],
)
def test_mistakes_in_the_settings(settings_file, old, new, message):
    Path(settings_file).write_text(Path(settings_file).read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        load_settings(settings_file)
