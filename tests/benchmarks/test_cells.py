"""Rows and locks."""

import dataclasses
import multiprocessing

import pytest

from benchmarks.cells import append_row, check_rows, claimed, finished_cells, read_rows


@dataclasses.dataclass(frozen=True)
class Cell:
    seed: int


class Settings:
    groups = ("all",)
    methods, retired = ("a", "b", "c"), ("old",)

    def group(self, name):
        return [Cell(0), Cell(1), Cell(2)]

    def of(self, cell):
        return {"epochs": 3}


def row(seed, **more):
    return {"seed": seed, "settings": {"epochs": 3}, **more}


def test_rows_come_back(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert read_rows(path, Cell) == []
    append_row(path, row(0, error=1.5))
    append_row(path, row(1, error=2.5))
    assert read_rows(path, Cell) == [row(0, error=1.5), row(1, error=2.5)]
    assert finished_cells(path, Cell) == {Cell(0), Cell(1)}
    path.write_text('{"seed": 0, "settings": {}}\n{"seed"')
    with pytest.raises(ValueError, match="line 2 is no row"):
        read_rows(path, Cell)
    path.write_text('{"error": 1.5}\n')
    with pytest.raises(ValueError, match=r"line 1 .*lacks \['seed', 'settings'\]"):
        read_rows(path, Cell)


def test_rows_must_be_of_the_settings_of_today_and_there_once(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_row(path, row(0))
    append_row(path, row(1, settings={"epochs": 4}))
    check_rows(path, [Cell(0), Cell(2)], Settings())
    check_rows(path, [], Settings())
    with pytest.raises(ValueError, match="Cell\\(seed=1\\) with other settings"):
        check_rows(path, [Cell(1)], Settings())
    append_row(path, row(0))
    with pytest.raises(ValueError, match="Cell\\(seed=0\\) twice"):
        check_rows(path, [Cell(0)], Settings())


def _hold(path, ready, done):
    with claimed(path):
        ready.set()
        done.wait(30)


def test_one_worker_holds_a_lock_and_a_dead_one_none(tmp_path):
    context = multiprocessing.get_context("fork")
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
