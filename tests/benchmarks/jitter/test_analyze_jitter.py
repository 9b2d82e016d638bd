"""Does more data jitter more: the draw of images, the lengths of the runs, the measure, and the command."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from benchmarks.jitter.command import concordance, main, run_study, table
from benchmarks.jitter.study import (
    CIFAR,
    DIGITS,
    PHASES,
    Study,
    cut,
    iterations_of,
    jitter,
    load_digits,
    train_and_watch,
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


def test_rows_say_how_far_the_training_has_come_and_repeat(digits):
    images = cut(digits, 20, TINY, 0)
    rows = train_and_watch(images, TINY, 24, seed=0)
    assert [(row["phase"], row["iteration"]) for row in rows] == [(PHASES[0], 14), (PHASES[1], 24)]
    assert [row["lr"] for row in rows] == pytest.approx([0.1, 0.01])
    assert all(row["jitter"] > 0 and row["train_loss"] > 0 for row in rows)
    # After the decay, by 0.1, the model moves less.
    assert rows[1]["jitter"] < rows[0]["jitter"]
    assert train_and_watch(images, TINY, 24, seed=0) == rows
    assert train_and_watch(images, TINY, 24, seed=1) != rows


def test_without_a_learning_rate_only_the_statistics_of_batch_norm_move(digits):
    images = cut(digits, 20, TINY, 0)
    still = train_and_watch(images, dataclasses.replace(TINY, lr=1e-12), 24, seed=0)
    moving = train_and_watch(images, TINY, 24, seed=0)
    assert still[1]["test_error"] > 60 and still[0]["jitter"] < moving[0]["jitter"]


def test_a_study_gives_a_row_for_each_control_level_seed_and_phase(digits):
    rows = list(run_study(digits, TINY, 1))
    assert [(r["control"], r["level"], r["iterations"], r["phase"]) for r in rows[::2]] == [
        ("iterations", 20, 24, PHASES[0]),
        ("iterations", 8, 24, PHASES[0]),
        ("epochs", 20, 24, PHASES[0]),
        ("epochs", 8, round(24 / 11 * 4), PHASES[0]),
    ]
    assert {**rows[0], "control": "epochs"} == rows[4]  # one model serves both controls


def made_up(jitters):
    """Rows of one control at the end; jitters maps (level, seed) to rad^2."""
    shared = {"control": "iterations", "iterations": 10, "lr": 0.1, "jitter_one": 0.1, "train_loss": 1.0}
    shared |= {"train_accuracy": 50.0, "curve": [[2, 0.1]]}
    return [
        {**shared, "phase": phase, "level": level, "seed": seed, "jitter": value}
        for phase in PHASES
        for (level, seed), value in jitters.items()
    ]


def test_the_answer_counts_pairs_of_sizes():
    rows = made_up({(100, 0): 0.3, (50, 0): 0.2, (10, 0): 0.25, (100, 1): 0.1, (50, 1): 0.2, (10, 1): 0.3})
    at_end = [row for row in rows if row["phase"] == PHASES[1]]
    assert concordance(at_end) == "more data jitters more in 2 of 6 pairs of sizes (2 seeds)"
    lines = table(rows).splitlines()
    assert "| 100 | 10 | 0.20000 ± 0.14142 | 0.10000 ± 0.00000 | 1.00000 ± 0.00000 | 50.0 ± 0.0 |" in lines


def test_the_command_leaves_rows_a_table_and_a_figure(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    flags = [
        "--levels",
        "20",
        "8",
        "--tail-size",
        "3",
        "--iterations",
        "24",
        "--window",
        "3",
        "--batch-size",
        "16",
        "--width",
        "4",
        "--seeds",
        "2",
    ]
    main([*flags, "--output", str(tmp_path)])
    content = json.loads((tmp_path / "rows.json").read_text())
    assert content["study"]["levels"] == [20, 8] and content["dataset"] == "sklearn/digits"
    assert len(content["rows"]) == 2 * 2 * 2 * 2 and content["versions"]["torch"] == torch.__version__
    assert (tmp_path / "jitter.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "table.md").read_text().strip() in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--levels 20 500", "images, the study wants 500"),
        ("--levels 20", "two or more levels"),
        ("--levels 20 8 --window 100 --iterations 300", "set a smaller one or more --iterations"),
        ("--levels 20 8 --batch-size 4000", "set a smaller --batch-size"),
        ("--seeds 0", "--seeds must be 1 or more"),
        ("--tail-class 12", "--tail-class must be between 0 and 9"),
        ("--data nowhere", "no images of cifar10_lt in nowhere"),
    ],
)
def test_what_a_user_can_get_wrong(flags, said, tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(SystemExit, match=said):
        main([*flags.split(), "--output", str(tmp_path)])


def test_the_defaults_fit_their_data(digits):
    for study, available in ((DIGITS, np.bincount(digits.train_labels)), (CIFAR, np.full(10, 500))):
        largest, smallest = (9 * level + study.tail_size for level in (max(study.levels), min(study.levels)))
        assert max(study.levels) <= available.min()
        assert iterations_of(smallest, largest, study, "epochs") < study.iterations
