"""Rows, locks, spreads and pairs, sections of a page."""

import multiprocessing

import pytest

from benchmarks.cells import append_row, claimed, paired, read_rows, spread, write_section


def test_rows_come_back(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert read_rows(path, ["seed"]) == []
    append_row(path, {"seed": 0, "error": 1.5})
    append_row(path, {"seed": 1, "error": 2.5})
    assert read_rows(path, ["seed"]) == [{"seed": 0, "error": 1.5}, {"seed": 1, "error": 2.5}]
    with pytest.raises(ValueError, match=r"line 1 .*lacks \['dataset'\]"):
        read_rows(path, ["dataset"])
    path.write_text('{"seed": 0}\n{"seed"')
    with pytest.raises(ValueError, match="line 2 is no row"):
        read_rows(path, ["seed"])


def _hold(path, ready, done):
    with claimed(path):
        ready.set()
        done.wait(30)


def test_one_worker_holds_a_lock_and_a_dead_one_none(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    worker = context.Process(target=_hold, args=(tmp_path / "lock", ready, done))
    worker.start()
    assert ready.wait(30)
    with claimed(tmp_path / "lock") as mine:
        assert not mine
    worker.kill()
    worker.join()
    with claimed(tmp_path / "lock") as mine:
        assert mine


def test_spread():
    assert spread([1.0, 3.0]) == "2.0 ± 1.4" and spread([1.0]) == "1.0"


def test_differences_are_paired_by_seed():
    ours, theirs = {0: 50.0, 1: 51.0, 2: 58.0}, {0: 60.0, 1: 62.0, 5: 0.0}
    assert paired(ours, theirs, lower_is_better=True) == "−10.5 ± 0.5 (2/2)"
    assert paired(ours, theirs, lower_is_better=False) == "−10.5 ± 0.5 (0/2)"
    assert paired({1: 3.0}, {1: 2.0}, lower_is_better=False) == "+1.0 (1/1)"
    assert paired({1: 3.0, 2: 3.5}, {1: 2.0, 2: 2.4}, False, digits=2) == "+1.05 ± 0.05 (2/2)"
    assert paired({1: 3.0}, {2: 2.0}, lower_is_better=False) == ""


def test_sections_of_a_page_leave_each_other_alone(tmp_path):
    page = tmp_path / "page.md"
    write_section(page, "one", "# One\n\nold")
    write_section(page, "two", "# Two")
    write_section(page, "one", "# One\n\nnew")
    assert page.read_text() == (
        "<!-- begin one -->\n# One\n\nnew\n<!-- end one -->\n\n<!-- begin two -->\n# Two\n<!-- end two -->\n"
    )
    page.write_text("<!-- begin one -->\n")
    with pytest.raises(ValueError, match="only one of"):
        write_section(page, "one", "text")
