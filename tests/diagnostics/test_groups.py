"""Confusion and answers by group, against values counted by hand."""

import numpy as np
import pytest

from mbj_plugin.diagnostics.groups import answers_by_group, confusion_matrix

# Ranks: class 0 is head (20 %), class 1 is medium, classes 2 to 4 are the tail.
COUNTS = [100, 50, 10, 5, 2]
TRUTH = [0, 0, 1, 1, 2, 2, 3, 4, 4, 4]
ANSWER = [0, 1, 1, 0, 2, 0, 4, 4, 1, 0]


def test_confusion_matrix_has_the_truth_in_its_rows():
    matrix = confusion_matrix(TRUTH, ANSWER, 5)
    expected = np.zeros((5, 5), dtype=int)
    for true, answer in zip(TRUTH, ANSWER, strict=True):
        expected[true, answer] += 1
    np.testing.assert_array_equal(matrix, expected)
    assert matrix[2, 0] == 1 and matrix[0, 2] == 0


def test_where_the_tails_answers_go():
    answers = answers_by_group(TRUTH, ANSWER, COUNTS)
    # Of six tail images: two right, one taken for class 4 (tail), one for class 1 (medium), two for class 0 (head).
    assert answers["tail"] == pytest.approx({"right": 200 / 6, "tail": 100 / 6, "medium": 100 / 6, "head": 200 / 6})
    assert answers["head"] == pytest.approx({"right": 50, "head": 0, "medium": 50, "tail": 0})
    assert all(sum(of.values()) == pytest.approx(100) for of in answers.values())


def test_a_group_without_test_images_is_left_out():
    assert set(answers_by_group([0, 0], [0, 4], COUNTS)) == {"head"}
