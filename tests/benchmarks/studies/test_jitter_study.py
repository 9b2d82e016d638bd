"""Does more data jitter more: the draw of images, the lengths of the runs, the measure, and the command."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from benchmarks.studies import jitter as study_of_jitter
from benchmarks.studies.jitter import (
    CONTROLS,
    PHASES,
    Study,
    concordance,
    cut,
    iterations_of,
    jitter,
    load_digits,
    table,
)

TINY = Study(levels=(20, 8), tail_size=3, iterations=24, window=4, batch_size=16, width=4)


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def keys(images):
    return {(image.tobytes(), label) for image, label in zip(images.train, images.train_labels.tolist(), strict=True)}


def test_levels_are_nested_and_the_tail_is_the_same(digits):
    large, small = cut(digits, 20, TINY, seed=1), cut(digits, 8, TINY, seed=1)
    assert np.bincount(large.train_labels).tolist() == [20] * 9 + [3]
    assert np.bincount(small.train_labels).tolist() == [8] * 9 + [3]
    assert keys(small) < keys(large)
    tail = [images.train[images.train_labels == 9] for images in (large, small)]
    np.testing.assert_array_equal(*tail)
    assert keys(cut(digits, 8, TINY, seed=2)) != keys(small)


def test_what_is_held_equal():
    study = dataclasses.replace(TINY, iterations=100, window=5)
    # 183 images fill 11 batches, 75 fill 4: as many epochs are 4 / 11 of the iterations.
    assert iterations_of(183, 183, study, "epochs") == iterations_of(75, 183, study, "iterations") == 100
    assert iterations_of(75, 183, study, "epochs") == round(100 * 4 / 11)


def test_the_jitter_of_a_row_is_the_angular_variance_of_the_window():
    angle = 0.2
    turning = torch.tensor([[math.cos(angle), math.sin(angle)], [math.cos(angle), -math.sin(angle)]])
    still = torch.ones(2, 2)
    row = jitter(torch.stack([turning, still]))
    assert row["jitter_one"] == pytest.approx(angle**2, rel=1e-5)
    assert row["jitter"] == pytest.approx(angle**2 / 2, rel=1e-5)
    assert row["curve"] == [[2, pytest.approx(angle**2 / 2, rel=1e-5)]]


def test_the_answer_counts_pairs_of_sizes():
    jitters = {(100, 0): 0.3, (50, 0): 0.2, (10, 0): 0.25, (100, 1): 0.1, (50, 1): 0.2, (10, 1): 0.3}
    shared = {"iterations": 10, "lr": 0.1, "jitter_one": 0.1, "train_loss": 1.0, "train_accuracy": 50.0}
    rows = [
        {**shared, "control": control, "phase": phase, "level": level, "seed": seed, "jitter": value}
        for control in CONTROLS
        for phase in PHASES
        for (level, seed), value in jitters.items()
    ]
    assert concordance(rows[:6]) == "more data jitters more in 2 of 6 pairs of sizes (2 seeds)"
    lines = table(rows).splitlines()
    assert "| 100 | 10 | 0.20000 ± 0.14142 | 0.10000 ± 0.00000 | 1.00000 ± 0.00000 | 50.0 ± 0.0 |" in lines


def test_the_command_leaves_rows_a_table_and_a_figure(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(study_of_jitter, "DIGITS", TINY)
    study_of_jitter.main(["--seeds", "2", "--output", str(tmp_path)])
    content = json.loads((tmp_path / "rows.json").read_text())
    assert content["study"]["levels"] == [20, 8] and content["dataset"] == "sklearn/digits"
    assert content["versions"]["torch"] == torch.__version__
    rows = [row for row in content["rows"] if row["seed"] == 0]
    plan = (("iterations", 20, 24, 14), ("iterations", 8, 24, 14), ("epochs", 20, 24, 14), ("epochs", 8, 9, 5))
    assert [(r["control"], r["level"], r["iterations"], r["phase"], r["iteration"]) for r in rows] == [
        (control, level, total, phase, at)
        for control, level, total, decay in plan
        for phase, at in zip(PHASES, (decay, total), strict=True)
    ]
    assert {**rows[0], "control": "epochs"} == rows[4]  # one model serves both controls
    assert [row["lr"] for row in rows[:2]] == pytest.approx([0.1, 0.01])
    assert rows[1]["jitter"] < rows[0]["jitter"]  # after the decay, by 0.1, the model moves less
    assert (tmp_path / "jitter.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "table.md").read_text().strip() in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no images of cifar10_lt in nowhere"):
        study_of_jitter.main(["--data", "nowhere", "--output", str(tmp_path)])
