"""The retrieval harness on the tiny set: real runs of fast-reid's trainer, rows, and the section made from them."""

import copy
import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mbj_plugin.fastreid.reproduce import runner
from mbj_plugin.fastreid.reproduce.command import main
from mbj_plugin.fastreid.reproduce.facts import memory_facts, pull
from mbj_plugin.fastreid.reproduce.settings import Cell, load_settings
from mbj_plugin.results import cell_of

SHIPPED = load_settings()


@pytest.fixture
def settings_file(make_cfg, tmp_path):
    (tmp_path / "tiny.yml").write_text(make_cfg().dump())
    path = tmp_path / "reproduce.yaml"
    path.write_text(
        "datasets:\n"
        f"  market1501: {{name: Market1501, config: {tmp_path / 'tiny.yml'}}}\n"
        "methods:\n"
        "  baseline: {}\n"
        "  mbj_wf: {MBJ: {MEMORY: both, NORM: max, START: 0}}\n"
        "  mbj_w: {MBJ: {MEMORY: prototype, START: 1000}}\n"
        "groups:\n"
        "  all: {dataset: market1501, heads: [20], methods: [baseline, mbj_wf], seeds: [0]}\n"
    )
    return path


@pytest.fixture
def call(settings_file, data_root, tmp_path):
    """call(argument, ...): the command, on the tiny set."""

    def run(*arguments):
        paths = {"settings": settings_file, "results": tmp_path / "page" / "rows.jsonl", "page": tmp_path / "page.md"}
        paths |= {"data": data_root, "state-dir": tmp_path / "state"}
        options = [text for name, path in paths.items() for text in (f"--{name}", str(path))]
        # The options first: what follows the last one is for fast-reid's config.
        main([*options, *arguments])
        return runner.read_rows(paths["results"])

    return run


def test_cells_run_once_and_make_a_section(call, tmp_path, capsys):
    rows = call("--group", "all")
    assert [row["method"] for row in rows] == ["baseline", "mbj_wf"]
    for row in rows:
        assert row["dataset"] == "market1501" and (row["num_head"], row["tail_size"], row["seed"]) == (20, 5, 0)
        assert all(0 <= row[name] <= 100 for name in ("mAP", "rank1", "mINP", "train_accuracy"))
        assert row["identities"] == 24 and row["images"] == 4 * 8 + 20 * 2
    assert "MBJ" not in rows[0]["settings"]["MODEL"] and rows[1]["settings"]["MODEL"]["MBJ"]["MEMORY"] == "both"
    assert rows[1]["memory"].keys() == {"prototype", "feature"} and rows[1]["pull"]["gradient_ratio"] > 0
    capsys.readouterr()
    assert call("--group", "all") == rows
    assert capsys.readouterr().out.startswith("2 of 2 cells")
    call("--report")
    page = (tmp_path / "page.md").read_text()
    assert "## Market-1501, <H20,S5>" in page and f"{rows[0]['mAP']:.1f}" in page and "| 55.6 | 78.6 |" in page
    ET.parse(tmp_path / "page" / "retrieval-market1501.svg")


def test_before_its_loss_counts_mbj_is_the_baseline(call):
    baseline, late = call("--dataset", "market1501", "--methods", "baseline", "mbj_w")
    assert late["pull"] == late["pull"] | {"loss_memory": 0.0, "gradient_ratio": 0.0}
    assert (late["mAP"], late["train_loss"]) == (baseline["mAP"], baseline["train_loss"])


def test_free_options_reach_the_config(settings_file):
    cell, settings = Cell("market1501", 20, 5, "baseline", 0), load_settings(settings_file)
    assert settings.config(cell, ["MODEL.DEVICE", "cuda"]).MODEL.DEVICE == "cuda"
    assert settings.config(cell).MODEL.MBJ.DIAGNOSTICS is False


def test_settings_of_another_shape(settings_file):
    for text in ("baseline:", "baseline: {MBJ: 1}"):
        settings_file.write_text(settings_file.read_text().replace("baseline: {}", text))
        with pytest.raises(ValueError, match="not of the shipped file's shape"):
            load_settings(settings_file)


def test_rows_of_other_settings_are_refused(call, settings_file):
    call("--dataset", "market1501", "--methods", "mbj_w")
    settings_file.write_text(settings_file.read_text().replace("START: 1000", "START: 999"))
    with pytest.raises(SystemExit, match="with other settings"):
        call("--dataset", "market1501", "--methods", "mbj_w")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "mbj_x"], "unknown method 'mbj_x', did you mean 'mbj_w"),
        (["--dataset", "market"], "unknown data set 'market'"),
        (["--group", "none"], "unknown group 'none'"),
        (["--processes", "0"], "processes must be >= 1"),
        (["--heads", "30"], "num_head must be between 0 and the 24 identities of the set, got 30"),
        (["--opts", "SOLVER.MAX_EPOCH", "1"], "SOLVER.MAX_EPOCH may change the result"),
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


def test_committed_rows_are_of_the_shipped_settings(request):
    path = Path(request.config.rootpath) / "docs" / "results" / "retrieval.jsonl"
    rows = runner.read_rows(path)
    if not rows:
        pytest.skip("no rows are committed")
    assert all(row["method"] in SHIPPED.methods and row["dataset"] in SHIPPED.datasets for row in rows)
    runner.check_rows([cell_of(row, Cell) for row in rows], SHIPPED, path)
    json.dumps(rows, allow_nan=False)


def test_shipped_groups_name_registered_editions():
    from fastreid.data.datasets import DATASET_REGISTRY

    for name in SHIPPED.groups:
        for cell in SHIPPED.group(name):
            DATASET_REGISTRY.get(SHIPPED.config(cell).DATASETS.NAMES[0])
    wide = SHIPPED.config(Cell("omniglot", 20, 5, "baseline_margin4", 0))
    assert wide.MODEL.HEADS.MARGIN == 0.4 and wide.MODEL.HEADS.NAME == "EmbeddingHead"
    market = SHIPPED.config(Cell("market1501", 50, 5, "baseline", 0))
    assert market.MODEL.HEADS.NAME == "EmbeddingHead" and market.DATASETS.NAMES == ("Market1501_LT_H50_S5",)
