"""The first table of docs/results.md, from rows that are made up here and from the committed ones."""

import json

import pytest

from benchmarks.summary import Setting, _line, _table, summary_text, with_summary

SETTING = Setting("here", "rows", {"dataset": "a", "kind": ("new", "old")}, "ce", ("b", "c"), "mbj", ("mbj", "d"))


@pytest.fixture
def line(tmp_path):
    def made(rows, setting=SETTING):
        shared = {"dataset": "a", "kind": "old", "device": "cpu", "versions": {"torch": "2"}}
        rows = [shared | dict(zip(("method", "seed", "error"), row[:3], strict=True)) | dict(*row[3:]) for row in rows]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return _line(setting, _table(setting, tmp_path))

    return made


def test_the_best_is_of_those_with_the_most_seeds(line):
    rows = [("ce", 0, 9.0), ("ce", 1, 8.0), ("b", 0, 5.0), ("b", 1, 7.0), ("c", 0, 1.0), ("mbj", 0, 6.0), ("d", 0, 4.0)]
    assert line(rows) == [
        "here",
        "9.0, 8.0",
        "`b` 5.0, 7.0; −4.0, −1.0 (2/2)",
        "6.0; −3.0 (1/1)",
        "`d` 4.0; −5.0 (1/1)",
    ]
    scores = Setting("s", "rows", {}, "ce", ("b", "c"), "mbj", ("mbj", "d"), lower_is_better=False)
    assert line(rows, scores)[2:] == ["`b` 5.0, 7.0; −4.00, −1.00 (0/2)", "6.0; −3.00 (0/1)", "`mbj` 6.0; −3.00 (0/1)"]


def test_rows_of_another_place_or_draw_do_not_count(line):
    others = [("ce", 0, 1.0, {"dataset": "b"}), ("ce", 0, 2.0, {"kind": "other"}), ("ce", 1, 3.0, {"draw": 1})]
    assert line(others) == ["here"] + 4 * ["not measured"]
    assert line([*others, ("ce", 0, 9.0)])[1] == "9.0"
    assert line([("ce", 0, 9.0), ("ce", 0, 8.0, {"kind": "new"})])[1] == "8.0"


def test_the_page_has_the_table_of_the_committed_rows(request):
    folder = request.config.rootpath / "docs" / "results"
    page = (folder.parent / "results.md").read_text()
    assert summary_text(folder) in page and with_summary(page, folder) == page, (
        "run `python tools/reproduce.py --report`"
    )
