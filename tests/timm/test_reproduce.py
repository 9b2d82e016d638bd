"""The harness on images that are drawn here: the fast loop, resuming, the rows, the readers."""

import dataclasses
import hashlib
import io
import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import yaml
from PIL import Image
from torchvision.transforms import functional as TF

from mbj_plugin import exponential_subset, results
from mbj_plugin.baselines import create_loss
from mbj_plugin.timm.criterion import MBJLoss
from mbj_plugin.timm.reproduce import runner
from mbj_plugin.timm.reproduce.command import main
from mbj_plugin.timm.reproduce.data import Images, class_ranks, load_images
from mbj_plugin.timm.reproduce.recipe import STATISTICS, build_model, epoch_draws
from mbj_plugin.timm.reproduce.settings import Method, Protocol, load_settings
from mbj_plugin.timm.reproduce.training import CellRun

TINY = Protocol(depth=8, width=4, epochs=3, milestones=(2,), warmup_epochs=1, batch_size=8, padding=2)
MBJ = Method(memory="feature", eta=15, norm="max", start=1, loss="balanced_softmax")
KEYS = {"dataset", "imbalance_ratio", "protocol", "method", "seed", "error", "head", "medium", "tail"}


def drawn(size=12, per_class=(14, 8, 6, 5, 5, 4, 4, 3, 3, 2), seed=0):
    """Classes are colours with noise; ten classes, so that the normalisation is CIFAR-10's."""
    rng = np.random.default_rng(seed)
    train_labels, test_labels = np.repeat(np.arange(10), per_class), np.repeat(np.arange(10), 5)
    colours = rng.integers(0, 200, (10, 3))

    def images(labels):
        noise = rng.integers(0, 56, (len(labels), size, size, 3))
        return (colours[labels][:, None, None] + noise).astype(np.uint8)

    ranks = class_ranks(train_labels, 0)
    return Images(images(train_labels), train_labels, ranks, images(test_labels), test_labels, "drawn")


def run(method=MBJ, protocol=TINY, seed=0):
    cell = CellRun(protocol, method, drawn(), seed)
    assert cell.train()
    return cell


def same_state(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def plain_run(images, protocol, seed):
    """The same run as a plain loop: PIL crops, torch's SGD, the recipe's learning rates by their formula."""
    mean, std = STATISTICS[10]
    model = build_model(protocol, MBJ, 10, seed)
    counts = np.bincount(images.train_labels)
    steps = len(images.train) // protocol.batch_size
    base = create_loss("balanced_softmax", counts)
    criterion = MBJLoss(counts, base, eta=15, norm="max", start=steps, seed=seed).bind(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)
    for epoch in range(protocol.epochs):
        for step, draw in enumerate(epoch_draws(len(images.train), protocol.batch_size, 2, seed, epoch)):
            update = epoch * steps + step
            # timm's milestones act one update early.
            decayed = 0.01 if update + 1 >= protocol.milestones[0] * steps else 1.0
            warmed = min(1.0, update / (protocol.warmup_epochs * steps))
            optimizer.param_groups[0]["lr"] = 0.1 * warmed * decayed
            batch = []
            for index, top, left, flip in draw.tolist():
                image = TF.crop(TF.pad(Image.fromarray(images.train[index]), 2), top, left, 12, 12)
                batch.append(TF.normalize(TF.to_tensor(TF.hflip(image) if flip else image), mean, std))
            x = torch.stack(batch).contiguous(memory_format=torch.channels_last)
            loss = criterion(model(x), torch.from_numpy(images.train_labels[draw[:, 0].numpy()]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model, criterion


def test_the_fast_loop_computes_what_a_plain_loop_computes():
    fast = run()
    model, criterion = plain_run(drawn(), TINY, seed=0)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(fast.model.state_dict()[key], value, rtol=1e-4, atol=1e-5, msg=key)
    memory, expected = fast.criterion.memories["feature"].bank, criterion.memories["feature"].bank
    assert torch.equal(memory.labels, expected.labels) and memory.filled > 10
    torch.testing.assert_close(memory.rows, expected.rows, rtol=1e-4, atol=1e-4)


def test_an_interrupted_cell_goes_on_exactly(tmp_path):
    whole, file, stops = run(), tmp_path / "cell.pt", 0
    while not (part := CellRun(TINY, MBJ, drawn(), 0)).train(file, deadline=-math.inf):
        stops += 1
    assert stops == TINY.epochs - 1
    assert same_state(part.model, whole.model) and same_state(part.criterion, whole.criterion)
    without_time = [{k: v for k, v in cell.result().items() if k != "seconds"} for cell in (part, whole)]
    assert without_time[0] == without_time[1]


@pytest.mark.parametrize("interrupted", [False, True])
@pytest.mark.parametrize("norm", ["sum", "max"])
def test_a_branch_of_the_trunk_is_the_whole_run(tmp_path, norm, interrupted):
    method = dataclasses.replace(MBJ, norm=norm, start="decay")
    trunk, state = tmp_path / "trunk", tmp_path / "state"
    while not CellRun(TINY, Method(loss="balanced_softmax"), drawn(), 0).train(
        state if interrupted else None, -math.inf if interrupted else math.inf, trunk
    ):
        pass
    branch, whole = CellRun(TINY, method, drawn(), 0), run(method)
    assert branch.train(trunk_file=trunk)
    assert same_state(branch.model, whole.model) and same_state(branch.criterion, whole.criterion)
    assert branch.curve == whole.curve and whole.criterion.memories["feature"].bank.filled > 3


def test_methods_of_one_seed_are_paired():
    # Before the memory loss starts, MBJ is its batch loss: same weights, same batches, to the bit.
    short = dataclasses.replace(TINY, epochs=2, milestones=(1,))
    off = Method(loss="balanced_softmax")
    later = dataclasses.replace(MBJ, start=2)
    assert same_state(run(off, short).model, run(later, short).model)
    assert not same_state(run(off, short).model, run(MBJ, TINY).model)
    assert not same_state(run(off, short).model, run(off, short, seed=1).model)


@pytest.mark.parametrize("name", sorted(load_settings().methods))
def test_every_shipped_method_trains(name):
    method = load_settings().methods[name]
    one = dataclasses.replace(TINY, epochs=2, milestones=(1,))
    result = run(method, one).result()
    assert 0 <= result["error"] <= 100 and not result["diverged"]
    assert [point["epoch"] for point in result["curve"]] == [1, 2]


def test_a_run_that_diverges_has_a_row(tmp_path):
    cell = run(protocol=dataclasses.replace(TINY, lr=1e30))
    results.append_row(tmp_path / "rows.jsonl", cell.result())
    row = json.loads((tmp_path / "rows.jsonl").read_text())
    assert row["diverged"] and row["curve"][-1]["train_loss"] is None


def test_result_groups_by_rank():
    cell = run()
    result, per_class = cell.result(), cell.test_error()
    assert result["head"] == pytest.approx(per_class[:2].mean(), abs=1e-3)
    assert result["medium"] == pytest.approx(per_class[2:4].mean(), abs=1e-3)
    assert result["tail"] == pytest.approx(per_class[4:].mean(), abs=1e-3)
    assert result["many_shot"] is None and result["few_shot"] == result["error"]
    assert result["error"] == pytest.approx(result["curve"][-1]["error"])
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("name", ["cifar10_lt100", "cifar100_lt10"])
def test_the_paper_protocol_is_the_recipe_of_the_shipped_configs(name):
    configs = Path(__file__).parents[2] / "configs" / "timm"
    config = yaml.safe_load((configs / "base_cifar_lt.yaml").read_text())
    leaf = yaml.safe_load((configs / f"{name}.yaml").read_text())
    paper = load_settings().protocols["paper"]
    for key in ("epochs", "batch_size", "lr", "momentum", "weight_decay", "decay_rate", "warmup_epochs"):
        assert getattr(paper, key) == config[key], key
    assert list(paper.milestones) == config["decay_milestones"] and paper.padding == config["crop_pad"]
    statistics = STATISTICS[leaf["num_classes"]]
    if "mean" in leaf:
        assert [list(s) for s in statistics] == [leaf["mean"], leaf["std"]]
    else:
        cfg = build_model(paper, MBJ, 10, 0).default_cfg
        assert list(statistics) == [cfg["mean"], cfg["std"]]


def write_npz(path, images):
    def sheet(split):
        """One WebP sheet of 16 tiles a row, filled up with black tiles."""
        tiles = np.zeros((-(-len(split) // 16) * 16, 32, 32, 3), np.uint8)
        tiles[: len(split)] = split
        pixels = tiles.reshape(-1, 16, 32, 32, 3).swapaxes(1, 2).reshape(-1, 512, 3)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "WEBP", lossless=True)
        return np.frombuffer(file.getvalue(), np.uint8)

    train, test = sheet(images.train), sheet(images.test)
    np.savez(
        path,
        train_webp=train,
        train_off=np.array([0, len(train)]),
        train_label=images.train_labels.astype(np.uint8),
        train_rank=images.train_rank.astype(np.uint16),
        test_webp=test,
        test_off=np.array([0, len(test)]),
        test_label=images.test_labels.astype(np.uint8),
    )


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
groups:
  all: {datasets: [cifar10_lt], ratios: [10], protocol: tiny, methods: [ce, mbj], seeds: [0, 1]}
""")
    return str(path)


def job(folder, settings_file, **kwargs):
    return runner.Job(str(folder), str(folder / "rows.jsonl"), str(folder / "state"), settings_file, **kwargs)


@pytest.mark.parametrize("workers", [{}, {"processes": 2}, {"streams": 2}], ids=["one", "processes", "streams"])
def test_cells_run_once(npz, settings_file, workers, capfd):
    cells = load_settings(settings_file).group("all")
    assert runner.run_cells(cells, job(npz, settings_file, **workers)) == 0
    rows = runner.read_rows(npz / "rows.jsonl")
    assert len(rows) == 4 and runner.finished_cells(npz / "rows.jsonl") == set(cells)
    assert all(set(row) >= KEYS for row in rows)
    assert capfd.readouterr().out.count(": error ") == 4
    assert runner.run_cells(cells, job(npz, settings_file, **workers)) == 0
    assert runner.read_rows(npz / "rows.jsonl") == rows
    assert not list((npz / "state").glob("*.pt"))


def test_rows_do_not_depend_on_the_workers(npz, settings_file):
    cells, errors = load_settings(settings_file).group("all"), []
    for name, workers in (("a", {}), ("b", {"streams": 3})):
        one = dataclasses.replace(job(npz, settings_file, **workers), results=str(npz / name))
        runner.run_cells(cells, one)
        errors.append({(row["method"], row["seed"]): row["per_class_error"] for row in runner.read_rows(npz / name)})
    assert errors[0] == errors[1]


def test_out_of_time_leaves_the_cells_and_goes_on_later(npz, settings_file):
    cells = load_settings(settings_file).group("all")
    assert runner.run_cells(cells, job(npz, settings_file, deadline=0.0)) == 4
    assert runner.run_cells(cells, job(npz, settings_file)) == 0


def test_a_cell_that_another_worker_holds_is_left_alone(npz, settings_file):
    cells = load_settings(settings_file).group("all")[:1]
    (npz / "state").mkdir()
    with results.claimed(npz / "state" / f"{cells[0].file_name}.lock") as mine:
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
        ("groups:", "gruops:", "protocols, methods and groups"),
    ],
)
def test_mistakes_in_the_settings(settings_file, old, new, message):
    Path(settings_file).write_text(Path(settings_file).read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        load_settings(settings_file)


def test_a_damaged_results_file_is_a_clear_error(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"dataset": "cifar10_lt"}\n')
    with pytest.raises(ValueError, match="line 1 is no row"):
        runner.read_rows(tmp_path / "rows.jsonl")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_captured_step_computes_what_an_eager_one_computes():
    cells = [CellRun(TINY, MBJ, drawn(), 0, "cuda", graph=graph) for graph in (False, True)]
    assert all(cell.train() for cell in cells)
    for key, value in cells[0].model.state_dict().items():
        torch.testing.assert_close(cells[1].model.state_dict()[key], value, rtol=1e-3, atol=1e-4, msg=key)
    for key, value in cells[0].criterion.state_dict().items():
        if not key.endswith("slot_rows"):
            assert torch.equal(cells[1].criterion.state_dict()[key], value), key
