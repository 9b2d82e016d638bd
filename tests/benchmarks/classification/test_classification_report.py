"""The results page from rows that are made up here."""

import json
import xml.etree.ElementTree as ET

import pytest

pytest.importorskip("matplotlib")

from benchmarks.cells import check_rows, read_rows
from benchmarks.classification import report
from benchmarks.classification.report import describe_protocol, page_text, paper_error, table_text, tables
from benchmarks.classification.settings import Cell, load_settings
from benchmarks.command import write_page

SETTINGS = load_settings()


def row(method, seed, error, protocol="cpu", **more):
    groups = {"head": error - 20, "medium": error, "tail": error + 8}
    cell = Cell("cifar10_lt", 100, protocol, method, seed)
    curve = [{"epoch": epoch, "error": error, **groups, "train_loss": 1.0} for epoch in (40, 80)]
    return {
        "dataset": "cifar10_lt",
        "imbalance_ratio": 100,
        "protocol": protocol,
        "method": method,
        "seed": seed,
        "precision": "fp32",
        "error": error,
        **groups,
        "train_accuracy": 90.0,
        "curve": curve,
        "class_counts": [10] * 10,
        "seconds": 5.0,
        "device": "cpu, 1 thread(s)",
        "versions": {"torch": "2.0", "timm": "1.0"},
        "settings": SETTINGS.of(cell) if method in SETTINGS.methods else {},
        "data": {"source": "drawn", "sha256": "ab" * 32},
        **more,
    }


ROWS = [
    row("ce", 0, 60.0),
    row("ce", 1, 62.0),
    row("balanced_softmax", 0, 50.0),
    row("balanced_softmax", 1, 51.0),
    row("balanced_softmax", 2, 58.0),
    row("balanced_softmax_mbj", 0, 49.0),
    row("balanced_softmax_mbj", 1, 51.6),
    row("mbj", 1, 53.0),
    row("ce", 0, 29.0, protocol="paper"),
    row("long_gone", 0, 1.0),
    row("mbj_ramp", 0, 54.0, settings={"of": "then"}),
]


@pytest.fixture
def written(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    write_page(report, tmp_path / "rows.jsonl", tmp_path / "page.md", SETTINGS)
    return tmp_path


def test_tables_keep_the_order_of_the_settings():
    assert list(tables(ROWS, SETTINGS)["cpu", "fp32", "cifar10_lt", 100, False]) == [
        "ce",
        "balanced_softmax",
        "mbj",
        "balanced_softmax_mbj",
        "mbj_ramp",
    ]


def test_the_page(written):
    page = (written / "page.md").read_text()
    assert "| `ce` | 2 | 60.0, 62.0 | 40.0, 42.0 |" in page
    # Differences are paired by seed.
    assert "−10.0, −11.0 (2/2) |" in page and "−1.0, +0.6 (1/2) |" in page
    assert "the paper's recipe (ResNet-32, 200 epochs, full resolution), fp32, one draw of the images" in page
    assert "| `balanced_softmax` | 3 | **53.0 ± 4.4** |" in page
    assert "| `ce` | 1 | **29.0** | 9.0 | 29.0 | 37.0 | 90.0 |  |  |  | 29.64 |" in page
    assert "torch 2.0" in page and "Protocol `cpu`: ResNet-" in page
    assert "| CIFAR-10-LT | `mbj` | 18.76 | 13.31 | 11.96 | 7.55 / 27.50 / 19.58 |" in page
    assert "--group paper_cifar100 --device cuda" in page and "--data data --group cpu_main\n" in page
    assert "long_gone" not in page
    assert "| `mbj_ramp` | 1 | 54.0 |" in page and "ten epochs (retired: the code is in 4cff568) |" in page


def test_figures_are_the_same_for_the_same_rows(written):
    figures = sorted(written.glob("*.svg"))
    assert [f.name for f in figures] == [
        f"{protocol}-cifar10_lt-100-{kind}.svg" for protocol in ("cpu", "paper") for kind in ("curves", "errors")
    ]
    before = [f.read_text() for f in figures]
    for figure in figures:
        ET.parse(figure)
    write_page(report, written / "rows.jsonl", written / "page.md", SETTINGS)
    assert [f.read_text() for f in figures] == before


def test_rows_of_other_settings_are_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row("ce", 0, 60.0, settings={"loss": "another"})) + "\n")
    with pytest.raises(ValueError, match="cifar10_lt rho 100 cpu ce seed 0 with other settings"):
        page_text(tmp_path / "rows.jsonl", SETTINGS)


def test_a_protocol_names_its_augmentation():
    protocols = load_settings().protocols
    for name, said in (("paper", ""), ("paper_autoaugment", "; AutoAugment and Cutout"), ("paper_mixup", "; Mixup of")):
        words = describe_protocol(name, protocols[name])
        assert said in words and (bool(said) == ("Mixup" in words or "Cutout" in words))


def test_seeds_that_draw_their_own_images_have_a_table_of_their_own(tmp_path):
    rows = [
        row("ce", 0, 60.0),
        row("ce", 1, 61.0),
        row("ce", 1, 66.0, draw=1),
        row("mbj", 0, 50.0),
        row("mbj", 1, 51.0),
    ]
    table = tables(rows, SETTINGS)
    own, one = (table["cpu", "fp32", "cifar10_lt", 100, each] for each in (True, False))
    assert {m: [r["error"] for r in runs.values()] for m, runs in own.items()} == {"ce": [60.0, 66.0]}
    assert {m: [r["error"] for r in runs.values()] for m, runs in one.items()} == {
        "ce": [60.0, 61.0],
        "mbj": [50.0, 51.0],
    }


def test_rows_that_an_interruption_may_have_changed_are_marked():
    rows = [
        row("mbj_wf", 0, 50.0),
        row("mbj_w", 0, 50.0),
        row("mbj", 0, 50.0),
        row("mbj_wf_memory", 0, 50.0, resumed=1),
    ]
    (table,) = tables(rows, SETTINGS).values()
    lines = {line.split("`")[1]: line for line in table_text(table, SETTINGS).splitlines()[2:]}
    assert {name for name, line in lines.items() if "| 1‡ |" in line} == {"mbj_wf"}


def test_no_rows_is_a_clear_error(tmp_path):
    with pytest.raises(ValueError, match="no rows in"):
        page_text(tmp_path / "none.jsonl", SETTINGS)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (("cifar10_lt", 100, "ce"), 29.64),
        (("cifar10_lt", 50, "mbj"), 13.31),
        (("cifar100_lt", 10, "ldam_drw"), 41.29),
        (("cifar100_lt", 100, "mbj_paper"), 54.24),
        (("cifar10_lt", 100, "balanced_softmax"), None),
        (("cifar10_lt", 100, "mbj_shared"), 18.76),
        (("cifar10_lt", 100, "balanced_softmax_mbj"), None),
        (("cifar10_lt", 100, "mbj_w"), None),
        (("cifar10_lt", 100, "mbj_eta1"), None),
        (("cifar10_lt", 1, "ce"), None),
    ],
)
def test_numbers_of_the_paper(cell, expected):
    assert paper_error(*cell, SETTINGS.methods[cell[-1]]) == expected


def test_methods_that_are_no_baselines_are_compared_where_both_have_rows(tmp_path):
    rows = [row("mbj_wf", 0, 50.0), row("mbj_sum", 0, 51.0), row("mbj_sum", 1, 55.0)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    text = page_text(tmp_path / "rows.jsonl", SETTINGS)
    assert "| `mbj_wf` − `mbj_sum` | −1.0 (1/1) |" in text and "`mbj_wf` − `mbj_wf_memory`" not in text


def test_the_committed_page_is_made_from_the_committed_rows(request):
    folder = request.config.rootpath / "docs" / "results"
    check_rows(folder / "classification.jsonl", [c for g in SETTINGS.groups for c in SETTINGS.group(g)], SETTINGS)
    rows = read_rows(folder / "classification.jsonl", Cell)
    names = {*SETTINGS.methods, *SETTINGS.retired}
    assert all(r["method"] in names and r["protocol"] in SETTINGS.protocols for r in rows)
    made = page_text(folder / "classification.jsonl", SETTINGS)
    assert made == (folder / "classification.md").read_text(), "run `python tools/reproduce.py --report`"
