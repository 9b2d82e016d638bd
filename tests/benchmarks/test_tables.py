"""Spreads, pairs, tables, and what is missing."""

from test_cells import Cell, Settings, row

from benchmarks.cells import append_row
from benchmarks.tables import by_method, markdown, missing_text, pair, paired, spread


def test_spread():
    assert spread([1.0, 3.0, 2.0]) == "2.0 ± 1.0" and spread([1.0, 3.0]) == "1.0, 3.0" and spread([1.0]) == "1.0"


def test_differences_are_paired_by_seed():
    ours, theirs = {0: 50.0, 1: 51.0, 2: 58.0}, {0: 60.0, 1: 62.0, 5: 0.0}
    assert paired(ours, theirs, lower_is_better=True) == "−10.0, −11.0 (2/2)"
    assert paired(ours, theirs | {2: 70.5}, lower_is_better=True) == "−11.2 ± 0.7 (3/3)"
    assert paired(ours, theirs, lower_is_better=False) == "−10.0, −11.0 (0/2)"
    assert paired({1: 3.0}, {1: 2.0}, lower_is_better=False) == "+1.0 (1/1)"
    assert paired({1: 3.0, 2: 3.5}, {1: 2.0, 2: 2.4}, False, digits=2) == "+1.00, +1.10 (2/2)"
    assert paired({1: 3.0}, {2: 2.0}, lower_is_better=False) == ""


def test_pairs_are_of_one_kind_of_device_and_say_where_torch_differs():
    made = lambda error, torch="2.0", device="cpu, 1 thread(s)": {  # noqa: E731
        "error": error,
        "device": device,
        "versions": {"torch": torch},
    }
    table = {"a": {0: made(3.0), 1: made(4.0)}, "b": {0: made(2.0), 1: made(9.0, device="H100"), 2: made(1.0)}}
    assert pair(table, "a", "b", "error", True) == "+1.0 (0/1)"
    table["b"][1] = made(5.0, torch="2.1")
    assert pair(table, "a", "b", "error", True) == "+1.0, −1.0 (1/2)†"
    assert pair(table, "a", "a", "error", True) == pair(table, "a", "c", "error", True) == ""


def test_rows_stand_by_method_and_seed():
    rows = [{"method": m, "seed": s} for m, s in (("b", 1), ("old", 0), ("a", 0), ("b", 0), ("gone", 0))]
    table = by_method(rows, Settings())
    assert [(method, list(runs)) for method, runs in table.items()] == [("a", [0]), ("b", [0, 1]), ("old", [0])]


def test_a_table():
    assert markdown(["x", "y"], [[1, "a"]]) == "| x | y |\n|---|---|\n| 1 | a |"


def test_what_is_missing_and_how_to_run_it(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_row(path, row(0))
    text = missing_text(Settings(), path, Cell, "run {}".format)
    assert "- group `all`: 2 of 3 cells have no row" in text and "```sh\nrun all\n```" in text
    append_row(path, row(1))
    append_row(path, row(2))
    assert "Nothing" in missing_text(Settings(), path, Cell, "run {}".format)
