"""Every number and order on the page against one counted by hand: classes lack test images, queries lack matches."""

import copy

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from made_up_runs import COUNTS, classifier_run, scores
from matplotlib.figure import Figure
from PIL import Image

from mbj_plugin.diagnostics import angular_variance
from mbj_plugin.tools.report.classes import class_section, confusion_section
from mbj_plugin.tools.report.headline import headline
from mbj_plugin.tools.report.memory_view import memory_section
from mbj_plugin.tools.report.retrieval import worst_section
from mbj_plugin.tools.report.run import RunRecord
from mbj_plugin.tools.report.search import SearchImages, scores_by_size, search
from mbj_plugin.tools.report.search import scores as scores_of

# Test images of classes 0 to 4: 4, 2, 0, 3, 1. Sizes 120, 60, 30, 10, 4: head is class 0, medium 1, tail 2 to 4.
TRUTH = np.array([0, 0, 0, 0, 1, 1, 3, 3, 3, 4])
FIRST = np.array([0, 0, 0, 0, 1, 0, 0, 0, 1, 3])  # wrong: 1 of class 1, 3 of 3, 1 of 4
LAST = np.array([3, 0, 0, 0, 1, 1, 3, 3, 1, 0])  # wrong: 1 of class 0, 1 of 3, 1 of 4


@pytest.fixture
def axes(monkeypatch):
    """Axes of every figure that is drawn, by their title."""
    drawn = {}
    save = Figure.savefig

    def spy(figure, *args, **kwargs):
        save(figure, *args, **kwargs)
        drawn.update({axis.get_title(): axis for axis in figure.axes})
        drawn[figure] = figure.axes

    monkeypatch.setattr(Figure, "savefig", spy)
    return drawn


@pytest.fixture
def run():
    """One run with two classifiers."""
    run = RunRecord("run", class_counts=COUNTS, truth=TRUTH, test_images=10, chosen="memory")
    run.classifiers = {"batch": scores("first", TRUTH, FIRST), "memory": scores("last", TRUTH, LAST)}
    return run


def test_the_table_and_the_verdict(run):
    (verdict,), section = headline([run])
    assert section.tables[0].header == ["classifier", "all", "head", "medium", "tail", "change"]
    assert section.tables[0].rows == [
        ["first", "50.00", "0.00", "50.00", "100.00", ""],
        ["last", "30.00", "25.00", "0.00", "50.00", "-20.00"],
    ]
    assert section.tables[1].rows == [
        ["first", "0.00", "50.00", "100.00"],
        ["last", "25.00", "0.00", "50.00"],
    ]
    assert verdict.startswith(
        "The test error of last is 20.00 points lower than that of first (30.00 % against 50.00 %). 1 seed, 10 test"
    )
    assert "one image is 10.00 points" in verdict
    chance = 200 * np.sqrt((0.5 * 0.5 + 0.3 * 0.7) / 10)
    assert f"by {chance:.1f} points, and this one is smaller" in verdict
    run.classifiers["memory"], run.classifiers["batch"] = run.classifiers["batch"], run.classifiers["memory"]
    assert "error of first is 20.00 points higher than that of last" in headline([run])[0][0]
    assert "The lowest error is that of last" in headline([run])[0][0]


def test_seeds_are_a_mean_and_a_paired_difference(run):
    runs = []
    for seed, (first, last) in enumerate(((50, 30), (40, 30), (60, 30))):
        each = copy.deepcopy(run)
        each.name, each.settings = f"s{seed}", {"seed": seed, "lr": 1}
        each.classifiers["batch"].errors, each.classifiers["memory"].errors = {"error": first}, {"error": last}
        runs.append(each)
    (verdict,), section = headline(runs)
    assert section.tables[0].rows == [["first", "50.00 ± 10.00", ""], ["last", "30.00 ± 0.00", "-20.00 ± 5.77"]]
    assert "3 seeds" in verdict and "-20.00 ± 5.77" in verdict and "chance" not in verdict
    assert headline(runs[:2])[1].tables[0].rows[1][2] == "-20.00, -10.00"
    for each, last in zip(runs, (49, 32, 60), strict=True):  # -3.00 ± 2.52
        each.classifiers["memory"].errors = {"error": last}
    runs[0].test_images = 0  # its model could not be run
    assert "within two of its standard errors" in headline(runs)[0][0] and "10 test images" in headline(runs)[0][0]
    runs[1].settings["seed"] = 0  # the same run twice is no other seed
    assert len(headline(runs)[1].tables[0].rows) == 6
    runs[1].settings["lr"] = 2  # not a seed of the others
    assert [row[0] for row in headline(runs)[1].tables[0].rows][:2] == ["s0: first", "s0: last"]


def test_errors_by_group_and_by_class(run, axes):
    section = class_section([run])
    bars = axes["Error by class group"].containers
    assert [[bar.get_height() for bar in group] for group in bars] == [[0, 50, 100], [25, 0, 50]]
    assert axes["Error by class group"].get_xticklabels()[2].get_text() == "tail\n3 classes\n44 images"
    for line, expected in zip(
        axes["Error by class size"].lines, ([0, 50, np.nan, 100, 100], [25, 0, np.nan, 100 / 3, 100]), strict=True
    ):
        np.testing.assert_allclose(line.get_ydata(), expected)
        np.testing.assert_allclose(line.get_xdata(), COUNTS, rtol=0.05)
    change = [bar.get_height() for bar in axes["last − first"].patches]
    np.testing.assert_allclose(change, [25, -50, np.nan, 100 / 3 - 100, 0])
    assert "of 5 classes better (bars down): 2, worse (up): 1." in section.figures[2].caption
    assert section.tables[0].rows[0] == ["0", "0", "120", "4", "0.0", "25.0"]
    assert section.tables[0].rows[2] == ["2", "2", "30", "0", "–", "–"]


def test_where_wrong_answers_go(run, axes):
    run.class_counts = COUNTS[::-1].copy()  # class 4 is the largest: head 4, medium 3, tail 0 to 2
    run.class_names = list("abcde")
    section = confusion_section([run])
    widths = [[bar.get_width() for bar in group] for group in axes["Answers by true group"].containers]
    # Rows: head of first and last, medium, tail; right, taken for tail, medium, head.
    np.testing.assert_allclose(widths[0], [0, 0, 0, 200 / 3, 500 / 6, 500 / 6])
    np.testing.assert_allclose(widths[1], [0, 100, 100, 100 / 3, 100 / 6, 0])
    np.testing.assert_allclose(widths[2], [100, 0, 0, 0, 0, 100 / 6])
    np.testing.assert_allclose(widths[3], [0] * 6)
    starts = [[bar.get_x() for bar in group] for group in axes["Answers by true group"].containers]
    np.testing.assert_allclose(starts, np.cumsum([[0] * 6, *widths[:-1]], axis=0))
    assert "first 0.0 %; last 0.0 %" in section.figures[0].caption
    image = axes["last: % of the true class"].images[0].get_array().filled(np.nan)
    expected = np.full((5, 5), np.nan)
    expected[0] = [0, 0, 0, 0, 100]  # class e, the largest: taken for a
    expected[1] = [0, 67, 0, 33, 0]  # d: two right, one taken for b
    expected[3] = [0, 0, 0, 100, 0]
    expected[4] = [0, 25, 0, 0, 75]
    np.testing.assert_allclose(image, expected)
    labels = [label.get_text() for label in axes["last: % of the true class"].get_yticklabels()]
    assert labels == list("edcba")


def test_what_the_memory_held(axes):
    run = classifier_run("run")
    section = memory_section([run])
    (bars,) = axes["run, feature memory"].containers
    np.testing.assert_allclose([bar.get_height() for bar in bars], [0, 0, 100 / 6, 200 / 6, 300 / 6])
    np.testing.assert_allclose(axes["run, feature memory"].lines[0].get_ydata(), 100 * COUNTS / 224)
    assert [row[1:4] for row in section.tables[0].rows] == [
        ["head", "0", "–"],
        ["medium", "0", "–"],
        ["tail", "6", "2"],  # 2.5: ages 0 to 5
    ]
    rows = run.memories["feature"].rows
    spread = angular_variance(rows[1:6], torch.tensor([0, 0, 1, 1, 1]), 2).mean()
    assert section.tables[0].rows[2][4] == f"{spread:.3g}" and section.tables[0].rows[0][4] == "–"


@pytest.fixture
def found(tmp_path):
    """Five queries of three identities, one without a match, against a gallery on a line: distances are known."""
    paths = []
    for i in range(10):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(np.full((8, 8, 3), 20 * i, dtype=np.uint8)).save(paths[-1])
    one, two = np.ones(5, dtype=int), np.zeros(5, dtype=int)  # cameras
    gallery = SearchImages(np.arange(5.0)[:, None], np.array([1, 2, 1, 2, 2]), one, paths[5:])
    places = np.array([0.0, 4.0, 1.9, 0.1, 0.0])[:, None]
    queries = SearchImages(places, np.array([1, 2, 2, 2, 9]), two, paths[:5])
    return search(queries, gallery, cosine=False, best=3)


def test_retrieval_is_counted_and_the_worst_are_the_worst(found, axes):
    # Ranked 1 2 1 2 2: AP (1 + 2/3) / 2; 2 2 1 2 1: (1 + 1 + 3/4) / 3; from 1.9: 1 2 2 1 2; from 0.1: 1 2 1 2 2.
    precision = [5 / 6, 11 / 12, (1 / 2 + 2 / 3 + 3 / 5) / 3, (1 / 2 + 2 / 4 + 3 / 5) / 3]
    assert [query.path[-5] for query in found] == list("0123")  # identity 9 is not in the gallery
    np.testing.assert_allclose([query.precision for query in found], precision)
    assert [query.rank for query in found] == [1, 1, 2, 2]
    penalty = [2 / 3, 3 / 4, 3 / 5, 3 / 5]
    assert scores_of(found) == pytest.approx({"mAP": 100 * np.mean(precision), "mINP": 65.41666667, "Rank-1": 50})
    # The first query alone is of identity 1, a head class; where only "_test_" tells, toy_2 is another identity.
    for sizes, separator in (
        ({"toy_1": 9, "toy_2": 1}, "_"),
        ({"toy_test_1": 9, "toy_2": 8, "toy_test_2": 1}, "_test_"),
    ):
        by_size = scores_by_size(sizes, found, separator)
        assert by_size == pytest.approx(
            {
                **{"head mAP": 100 * precision[0], "tail mAP": 100 * np.mean(precision[1:])},
                **{"head mINP": 100 * penalty[0], "tail mINP": 100 * np.mean(penalty[1:])},
                **{"head Rank-1": 100, "tail Rank-1": 100 / 3},
            }
        )
    run = RunRecord("a", retrieval={"mAP": 50.0}, retrieval_by_size=by_size)
    assert headline([run])[1].tables[1].rows[0][1:3] == ["83.33", "67.96"]
    section = worst_section([RunRecord("a", searches={"toy": found})])
    shown = [axis for key, value in axes.items() if isinstance(key, Figure) for axis in value]
    titles = [[axis.get_title() for axis in shown[5 * row : 5 * row + 5]] for row in range(4)]
    assert titles[0] == ["AP 53 %", "✗", "✓", "✗", "✓ 2."]
    assert [row[0] for row in titles] == ["AP 53 %", "AP 59 %", "AP 83 %", "AP 92 %"]
    # Query 3 (60), its matches 5, 6 and 7, and its nearest right image, 6: their grey values.
    assert [axis.images[0].get_array()[0, 0, 0] for axis in shown[:5]] == [60, 100, 120, 140, 120]
    assert "the 4 worst of 4 queries" in section.figures[0].caption


def test_scores_of_the_evaluations_and_their_difference():
    of = {"base": {"Rank-1": 60.0, "mAP": 40.0}, "some": {"mAP": 39.0}, "mbj": {"Rank-1": 59.0, "mAP": 41.5}}
    (verdict,), section = headline([RunRecord(name, retrieval=scores) for name, scores in of.items()])
    assert section.tables[0].rows == [
        ["base: model", "60.00", "40.00", ""],
        ["some: model", "-", "39.00", "-"],
        ["mbj: model", "59.00", "41.50", "-1.00"],
    ]
    assert verdict.startswith("mAP of mbj: model is 1.50 points higher than that of base: model (41.50 % against 40.00")
