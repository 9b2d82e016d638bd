"""The retrieval harness on the tiny set: real runs of fast-reid's trainer, rows, and the section made from them."""

import copy
import dataclasses
import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.cells import read_rows
from benchmarks.retrieval import runner
from benchmarks.retrieval.command import main
from benchmarks.retrieval.memory_facts import memory_facts, pull
from benchmarks.retrieval.settings import Cell, load_settings
from mbj_plugin.fastreid.schedule import Schedule

SHIPPED = load_settings()


@pytest.fixture
def settings_file(make_cfg, tmp_path):
    (tmp_path / "tiny.yml").write_text(make_cfg().dump())
    path = tmp_path / "settings.yaml"
    path.write_text(
        "datasets:\n"
        f"  market1501: {{name: Market1501, config: {tmp_path / 'tiny.yml'}}}\n"
        "methods:\n"
        "  baseline: {}\n"
        "  mbj_wf: {MBJ: {MEMORY: both, NORM: max, START: 0}}\n"
        "  mbj_w: {MBJ: {MEMORY: prototype, START: 17}}\n"
        "groups:\n"
        "  all: {dataset: market1501, num_head: [20], methods: [baseline, mbj_wf], seeds: [0]}\n"
    )
    return path


@pytest.fixture
def call(settings_file, data_root, tmp_path):
    """call(argument, ...): the command, on the tiny set."""

    def run(*arguments):
        paths = {"settings": settings_file, "results": tmp_path / "rows.jsonl", "page": tmp_path / "page.md"}
        paths |= {"data": data_root, "state-dir": tmp_path / "state"}
        options = [text for name, path in paths.items() for text in (f"--{name}", str(path))]
        main([*options, *arguments])
        return read_rows(paths["results"], Cell)

    return run


RUNS = []


class Recorded(runner.DefaultTrainer):
    """fast-reid's trainer, with the total loss and the accuracy of every step written down beside it."""

    def __init__(self, cfg):
        super().__init__(cfg)
        losses, right = [], []

        def head(module, inputs, outputs):
            right.append((outputs["pred_class_logits"].argmax(1) == inputs[1]).float().mean().item())

        def model(module, inputs, outputs):
            losses.append(sum(loss.item() for loss in outputs.values()))

        self.model.heads.register_forward_hook(lambda *call: head(*call) if call[0].training else None)
        self.model.register_forward_hook(lambda *call: model(*call) if call[0].training else None)
        RUNS.append((self, losses, right))


def search(model, cfg):
    """mAP, Rank-1 and mINP in percent: each query against the gallery, without the images of its own camera."""
    loader, num_query = runner.DefaultTrainer.build_test_loader(cfg, "Market1501")
    with torch.no_grad():
        rows = [F.normalize(model.eval()(batch)).numpy() for batch in loader]
    rows = np.concatenate(rows)
    people, cameras = (np.array([item[i] for item in loader.dataset.img_items]) for i in (1, 2))
    precisions, firsts, penalties = [], [], []
    for query in range(num_query):
        others = np.arange(num_query, len(rows))
        others = others[(people[others] != people[query]) | (cameras[others] != cameras[query])]
        right = people[others][np.argsort(-rows[others] @ rows[query], kind="stable")] == people[query]
        places = np.flatnonzero(right) + 1
        precisions.append(np.mean(np.arange(1, len(places) + 1) / places))
        firsts.append(places[0] == 1)
        penalties.append(len(places) / places[-1])
    return [100 * np.mean(each) for each in (precisions, firsts, penalties)]


def test_cells_run_once_and_make_a_section(call, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runner, "DefaultTrainer", Recorded)
    RUNS.clear()
    rows = call("--group", "all")
    assert [row["method"] for row in rows] == ["baseline", "mbj_wf"]
    for row, (trainer, losses, right) in zip(rows, RUNS, strict=True):
        steps = slice(trainer.iters_per_epoch, 2 * trainer.iters_per_epoch)  # of the second epoch of two
        assert row["iterations"] == steps.stop
        assert row["train_accuracy"] == pytest.approx(100 * np.mean(right[steps]), abs=1e-3)
        assert row["train_loss"] == pytest.approx(np.mean(losses[steps]), rel=1e-5)
        final = torch.load(f"{trainer.cfg.OUTPUT_DIR}/model_final.pth")["model"]
        trainer.model.load_state_dict(final, strict=False)
        assert [row["mAP"], row["rank1"], row["mINP"]] == pytest.approx(search(trainer.model, trainer.cfg), abs=1e-3)
        assert row["dataset"] == "market1501" and (row["num_head"], row["tail_size"], row["seed"]) == (20, 5, 0)
        assert row["identities"] == 24 and row["images"] == 4 * 8 + 20 * 2
    assert "MBJ" not in rows[0]["settings"]["MODEL"] and rows[1]["settings"]["MODEL"]["MBJ"]["MEMORY"] == "both"
    assert rows[1]["memory"].keys() == {"prototype", "feature"} and rows[1]["pull"]["gradient_ratio"] > 0
    capsys.readouterr()
    assert call("--group", "all") == rows
    assert capsys.readouterr().out.startswith("2 of 2 cells")
    call("--report")
    page = (tmp_path / "page.md").read_text()
    assert "## Market-1501, <H20,S5>" in page and f"{rows[0]['mAP']:.1f}" in page and "| 55.6 | 78.6 |" in page
    ET.parse(tmp_path / "retrieval-market1501.svg")


def test_before_its_loss_counts_mbj_is_the_baseline(call, monkeypatch):
    monkeypatch.setattr(Schedule, "start_iteration", lambda *_: 1000)  # past the end, which a config may not ask for
    baseline, late = call("--dataset", "market1501", "--methods", "baseline", "mbj_w")
    assert late["pull"] == late["pull"] | {"loss_memory": 0.0, "gradient_ratio": 0.0}
    assert (late["mAP"], late["train_loss"]) == (baseline["mAP"], baseline["train_loss"])


def test_free_options_reach_the_config(settings_file):
    cell, settings = Cell("market1501", 20, 5, "baseline", 0), load_settings(settings_file)
    assert settings.config(cell, ["MODEL.DEVICE", "cuda"]).MODEL.DEVICE == "cuda"


def test_settings_of_another_shape(settings_file):
    for text in ("baseline:", "baseline: {MBJ: 1}"):
        settings_file.write_text(settings_file.read_text().replace("baseline: {}", text))
        with pytest.raises(ValueError, match="not of the shipped file's shape"):
            load_settings(settings_file)


def test_rows_of_other_settings_are_refused(call, settings_file):
    call("--dataset", "market1501", "--methods", "mbj_w")
    settings_file.write_text(settings_file.read_text().replace("START: 17", "START: 16"))
    for arguments in ([], ["--list"], ["--report"]):
        with pytest.raises(SystemExit, match="with other settings"):
            call("--dataset", "market1501", "--methods", "mbj_w", *arguments)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: Market1501", "name: Market", "data set 'market1501' of the settings: there is no 'Market'"),
        ("baseline: {}", "baseline: {HEADS: {MARGN: 0.3}}", "method 'baseline' of the settings: .*MARGN"),
    ],
)
def test_names_that_fastreid_does_not_have(call, settings_file, old, new, message):
    settings_file.write_text(settings_file.read_text().replace(old, new))
    with pytest.raises(SystemExit, match=message):
        call("--group", "all")


def test_a_loss_that_is_not_finite_costs_its_own_cell_only(call, monkeypatch, capsys):
    run_cell = runner.run_cell

    def diverge(cell, settings, job):
        if cell.method == "baseline":
            raise FloatingPointError("Loss became infinite or NaN at iteration=3!")
        return run_cell(cell, settings, job)

    monkeypatch.setattr(runner, "run_cell", diverge)
    assert [row["method"] for row in call("--group", "all")] == ["mbj_wf"]
    out = capsys.readouterr().out
    assert "baseline seed 0: no row, Loss became infinite" in out and "1 of 2 cells have a row" in out


def test_processes_share_the_cells(call, capsys, forked):
    rows = call("--group", "all", "--processes", "2")
    assert "2 of 2 cells have a row" in capsys.readouterr().out
    assert sorted(row["method"] for row in rows) == ["baseline", "mbj_wf"]


def test_a_row_that_two_calls_have_written_is_no_second_measurement(call, tmp_path):
    (row,) = call("--dataset", "market1501", "--methods", "baseline")
    with open(tmp_path / "rows.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")
    for arguments in (["--list"], ["--report"]):
        with pytest.raises(SystemExit, match="baseline seed 0 twice"):
            call("--dataset", "market1501", *arguments)


def test_rows_of_data_sets_that_the_settings_do_not_have_are_left_out(call, tmp_path):
    (row,) = call("--dataset", "market1501", "--methods", "baseline")
    with open(tmp_path / "rows.jsonl", "a") as file:
        file.write(json.dumps(row | {"dataset": "somebody's", "settings": {}}) + "\n")
    call("--report")
    assert "somebody's" not in (tmp_path / "page.md").read_text()


def test_a_checkout_of_fastreid_has_no_version(monkeypatch):
    def nothing(name):
        raise runner.PackageNotFoundError(name)

    monkeypatch.setattr(runner, "version", nothing)
    assert runner._versions()["fastreid"] == "a checkout"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "mbj_x"], "unknown method 'mbj_x', did you mean 'mbj_w"),
        (["--dataset", "market"], "unknown data set 'market'"),
        (["--group", "none"], "unknown group 'none'"),
        (["--processes", "0"], "processes must be >= 1"),
        (["--num-head", "30"], "num_head must be between 0 and the 24 identities of the set, got 30"),
        (["--num-head", "-1"], "whole numbers H >= 0 and S >= 1, got <-1, 5>"),
        (["--opts", "SOLVER.MAX_EPOCH", "1"], "SOLVER.MAX_EPOCH may change the result"),
        (["--opts", "TEST.EVAL_PERIOD", "1"], "TEST.EVAL_PERIOD may change the result"),
        (["--opts", "MODEL.DEVICE"], "MODEL.DEVICE has no value"),
        (["--settings", "nowhere.yaml"], "cannot read the settings nowhere.yaml"),
        (["--report"], "no rows in"),
    ],
)
def test_bad_input(call, arguments, message):
    with pytest.raises(SystemExit, match=message):
        call("--dataset", "market1501", *arguments)


def test_missing_images_are_a_clear_error(call, tmp_path):
    with pytest.raises(SystemExit, match="FASTREID_DATASETS"):
        call("--dataset", "market1501", "--data", str(tmp_path / "nowhere"))


def test_facts_against_the_definitions(make_trainer):
    model = make_trainer("MODEL.MBJ.NORM", "max").model
    head = model.heads
    memory = head.memories["prototype"]
    memory.bank.enqueue(torch.eye(16)[:3], torch.tensor([5, 5, 7]))
    memory.bank.enqueue(torch.eye(16)[3:4] + torch.eye(16)[1:2], torch.tensor([5]))
    tail = torch.ones(24, dtype=torch.bool)
    tail[7] = False
    facts = memory_facts(model, tail)["prototype"]
    assert facts["fill"] == pytest.approx(4 / 3500) and facts["age"] == pytest.approx(3 / 4)
    assert facts["tail_covered"] == pytest.approx(1 / 23) and facts["rows_per_tail"] == pytest.approx(3 / 23)
    # e0 to e1, then e1 to e1 + e3.
    assert facts["step"] == pytest.approx((90 + 45) / 2, rel=1e-4)
    rows, now = memory.bank.rows[:4], head.weight[[5, 5, 7, 5]]
    angles = [math.degrees(math.acos(cosine)) for cosine in F.cosine_similarity(rows, now, dim=1).tolist()]
    assert facts["to_now"] == pytest.approx(sum(angles) / 4, rel=1e-4)
    # A whole set has no tail.
    assert memory_facts(model, ~tail & False)["prototype"].keys() == facts.keys() - {"tail_covered", "rows_per_tail"}


def test_pull_compares_the_gradients(make_trainer, steps):
    trainer = make_trainer("MODEL.MBJ.NORM", "max", "MODEL.MBJ.ETA", 2.0)
    steps(trainer, 2)
    state = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    batch = next(trainer._trainer._data_loader_iter)
    # fast-reid normalises the images in place.
    once = pull(trainer.model, copy.deepcopy(batch))
    trainer.model.load_state_dict(state)
    for memory in trainer.model.heads.memories.values():
        memory.eta *= 2
    twice = pull(trainer.model, batch)
    assert once["gradient_ratio"] > 0 and twice["gradient_ratio"] == pytest.approx(2 * once["gradient_ratio"], rel=1e-4)
    assert twice["gradient_cosine"] == pytest.approx(once["gradient_cosine"], rel=1e-4)


def test_the_committed_page_is_made_from_the_committed_rows(request):
    page_text = pytest.importorskip("benchmarks.retrieval.report").page_text
    folder = Path(request.config.rootpath) / "docs" / "results"
    rows = read_rows(folder / "retrieval.jsonl", Cell)
    names = {*SHIPPED.methods, *SHIPPED.retired}
    assert all(row["method"] in names and row["dataset"] in SHIPPED.datasets for row in rows)
    made = page_text(folder / "retrieval.jsonl", SHIPPED)
    assert made == (folder / "retrieval.md").read_text(), "run `python tools/reproduce_retrieval.py --report`"


def test_shipped_cells_have_a_config():
    cells = {cell for name in SHIPPED.groups for cell in SHIPPED.group(name)}
    for cell in {dataclasses.replace(cell, seed=0) for cell in cells}:
        cfg = SHIPPED.config(cell)
        names = [f"{name}_LT_H{cell.num_head}_S{cell.tail_size}" for name in cfg.DATASETS.TESTS]
        assert list(cfg.DATASETS.NAMES) == names
        assert cfg.TEST.EVAL_PERIOD == cfg.SOLVER.MAX_EPOCH
    wide = SHIPPED.config(Cell("omniglot", 20, 5, "baseline_margin4", 0))
    assert wide.MODEL.HEADS.MARGIN == 0.4 and wide.MODEL.HEADS.NAME == "EmbeddingHead"
    market = SHIPPED.config(Cell("market1501", 50, 5, "baseline", 0))
    assert market.MODEL.HEADS.NAME == "EmbeddingHead" and market.DATASETS.NAMES == ("Market1501_LT_H50_S5",)
