import contextlib

import numpy as np
import pytest

from mbj_plugin import class_groups, exponential_counts, exponential_subset, head_tail_subset, longtail
from mbj_plugin.longtail import count_classes


def test_exponential_counts_are_those_of_cifar_lt():
    counts = exponential_counts(10, 5000, 100)
    assert counts.tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert counts.sum() == 12406
    assert exponential_counts(100, 500, 100).sum() == 10847
    assert exponential_counts(100, 500, 10).sum() == 19573


def test_exponential_counts_of_a_balanced_and_of_a_single_class_set():
    assert exponential_counts(3, 7, 1).tolist() == [7, 7, 7]
    assert exponential_counts(1, 7, 10).tolist() == [7]
    assert exponential_counts(2, 100, 100).tolist() == [100, 1]
    assert exponential_counts(2, 1, 1).tolist() == [1, 1]


@pytest.mark.parametrize("count", [49, 98, 103, 107])
def test_rounding_takes_no_image(count):
    assert exponential_counts(10, count, count)[-1] == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((10, 100, 0.5), "imbalance ratio.*0.5"),
        ((10, 100, float("nan")), "imbalance ratio.*nan"),
        ((10, 100, float("inf")), "imbalance ratio.*a number >= 1, got inf"),
        ((10, 100, 200), "at most 100"),
        ((0, 100, 10), "num_classes"),
        ((10, 0, 10), "max_count"),
    ],
)
def test_bad_exponential_counts(args, message):
    with pytest.raises(ValueError, match=message):
        exponential_counts(*args)


def test_exponential_subset_follows_the_profile_and_is_nested():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(5), 40))
    ten, forty = exponential_subset(labels, 10), exponential_subset(labels, 40)
    assert np.bincount(labels[ten]).tolist() == exponential_counts(5, 40, 10).tolist()
    assert set(forty) < set(ten)
    assert (np.diff(ten) > 0).all()
    assert not np.array_equal(ten, exponential_subset(labels, 10, seed=1))


def test_exponential_subset_of_an_unbalanced_set_keeps_the_ratio():
    labels = np.repeat([0, 1, 2], [50, 10, 30])
    counts = np.bincount(labels[exponential_subset(labels, 4)])
    assert counts.tolist() == exponential_counts(3, 21, 4).tolist()
    assert (counts <= [50, 10, 30]).all()


def test_one_image_is_enough_for_the_smallest_class():
    assert exponential_subset([0, 1, 0, 0], 3).tolist() == [0, 1, 2, 3]


def test_exponential_subset_names_the_missing_class():
    with pytest.raises(ValueError, match="no labelled image"):
        exponential_subset([-1], 2)
    with pytest.raises(ValueError, match="class 1 has no images"):
        exponential_subset([0, 0, 2, 2], 2)


def test_exponential_subset_names_the_class_that_is_too_small_to_be_the_largest():
    with pytest.raises(ValueError, match="class 0 is the largest of the profile, and class 0 has only 5 images$"):
        exponential_subset([0] * 5 + [1] * 1000, 100)
    with pytest.raises(ValueError, match="imbalance ratio 10 .* class 1 has only 2 images$"):
        exponential_subset([0] * 50 + [1] * 2 + [2] * 3, 10)


def test_head_tail_subset_keeps_the_head_and_cuts_the_tail():
    identities = np.repeat([7, 3, 11, 5], [9, 6, 6, 2])
    chosen = head_tail_subset(identities, num_head=2, tail_size=4)
    kept = dict(zip(*np.unique(identities[chosen], return_counts=True), strict=True))
    # 7 has most images; of 3 and 11, equally frequent, "11" comes first by name.
    assert kept == {7: 9, 11: 6, 3: 4, 5: 2}
    assert np.array_equal(chosen, np.sort(chosen))


def test_the_draw_of_one_identity_depends_on_its_name_alone():
    alone = head_tail_subset(["a"] * 9, 0, 3)
    beside = head_tail_subset(["b"] * 5 + ["a"] * 9, 0, 3)
    assert np.array_equal(alone, beside[beside >= 5] - 5)
    assert not np.array_equal(alone, head_tail_subset(["a"] * 9, 0, 3, seed=1))


def test_head_tail_subset_of_head_alone_and_of_nothing():
    assert head_tail_subset([4, 4, 9], num_head=2, tail_size=1).tolist() == [0, 1, 2]
    nothing = head_tail_subset([], num_head=0, tail_size=1)
    assert nothing.shape == (0,) and nothing.dtype == np.int64


@pytest.mark.parametrize(
    ("args", "message"), [((-1, 5), "num_head"), ((3, 5), "2 identities.*3"), ((1, 0), "tail_size")]
)
def test_bad_head_tail_subset(args, message):
    with pytest.raises(ValueError, match=message):
        head_tail_subset([1, 1, 2], *args)


def test_class_groups_of_tables_4_and_5():
    counts = exponential_counts(10, 5000, 100)
    groups = class_groups(counts)
    assert [groups[name].tolist() for name in ("head", "medium", "tail")] == [[0, 1], [2, 3], [4, 5, 6, 7, 8, 9]]
    # These shares make the overall error of the paper's group errors (Table 4, baseline on CIFAR-10).
    overall = 0.2 * 4.50 + 0.2 * 26.79 + 0.6 * 38.96
    assert overall == pytest.approx(29.63, abs=0.01)


def test_class_groups_of_the_field():
    groups = class_groups([101, 100, 20, 19, 3])
    assert [groups[f"{name}_shot"].tolist() for name in ("many", "medium", "few")] == [[0], [1, 2], [3, 4]]
    unordered = class_groups([3, 500, 30, 7, 90])
    assert [unordered[name].tolist() for name in ("head", "medium", "tail")] == [[1], [4], [0, 2, 3]]


@pytest.mark.parametrize(("counts", "shape"), [([], r"\(0,\)"), ([[3, 2]], r"\(1, 2\)"), (7, r"\(\)")])
def test_bad_class_groups(counts, shape):
    with pytest.raises(ValueError, match=f"class_counts must be a list.*{shape}"):
        class_groups(counts)


def test_class_counts():
    assert count_classes([0, 2, 2, -1], 4).tolist() == [1, 0, 2, 0]
    with pytest.raises(ValueError, match="label 4 is out of range.*0 to 3"):
        count_classes([4], 4)


def test_the_smallest_profile_of_all_is_tried_too():
    least = exponential_counts(10, 100, 100)
    available = [1000, *least[1:]]  # but of the first class no more than for 100
    assert longtail.largest_exponential_counts(available, 100).tolist() == least.tolist()


def test_the_largest_profile_is_that_of_trying_every_size_and_is_found_in_few_steps(monkeypatch):
    rng = np.random.default_rng(0)
    for _ in range(50):
        available, ratio = rng.integers(1, 60, rng.integers(1, 8)), rng.uniform(1, 20)
        fitting = []
        for largest in range(1, available.max() + 1):
            with contextlib.suppress(ValueError):
                counts = exponential_counts(len(available), largest, ratio)
                fitting += [counts.tolist()] if (counts <= available).all() else []
        if fitting:
            assert longtail.largest_exponential_counts(available, ratio).tolist() == fitting[-1]
        else:
            with pytest.raises(ValueError, match="without an image"):
                longtail.largest_exponential_counts(available, ratio)
    calls = []
    monkeypatch.setattr(longtail, "exponential_counts", lambda *args: calls.append(args) or exponential_counts(*args))
    longtail.largest_exponential_counts([30_000] + [60_000] * 9, 100)
    assert 2 < len(calls) < 25


def test_images_of_classes():
    images = longtail.images_of_classes([1, 0, -1, 3, 1, 5], 5)
    assert [i.tolist() for i in images] == [[1], [0, 4], [], [3], []]


def test_no_search_of_all_labels_for_each_class(monkeypatch):
    searches = []
    monkeypatch.setattr(np, "flatnonzero", lambda x: searches.append(1) or np.nonzero(np.ravel(x))[0])
    exponential_subset(np.repeat(np.arange(50), 4), 2)
    head_tail_subset(np.repeat(np.arange(50), 4), 3, 2)
    assert not searches
