"""mAP and Rank-1 of each query against a slow reference, and by group."""

import numpy as np
import pytest

from mbj_plugin.tools.report.search import SearchImages, groups_by_matches, search


def images(count, seed, identities=5, cameras=3):
    rng = np.random.default_rng(seed)
    who, where = rng.integers(0, identities, count), rng.integers(0, cameras, count)
    rows = rng.normal(size=(count, 6)) + np.eye(6)[who % 6] * 1.5
    return SearchImages(rows.astype(np.float32), who, where, [f"{seed}-{i}" for i in range(count)])


def reference(queries, gallery, index, cosine):
    """(average precision, Rank-1) of one query by the definition; None where it has no right image."""
    ranked = []
    for j in range(len(gallery.paths)):
        if gallery.identities[j] == queries.identities[index] and gallery.cameras[j] == queries.cameras[index]:
            continue
        a, b = queries.rows[index].astype(float), gallery.rows[j].astype(float)
        if cosine:
            a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
        ranked.append((((a - b) ** 2).sum(), gallery.identities[j] == queries.identities[index]))
    right = [same for _, same in sorted(ranked)]
    if not any(right):
        return None
    precisions = [sum(right[: place + 1]) / (place + 1) for place, same in enumerate(right) if same]
    return sum(precisions) / len(precisions), right[0], right.index(True) + 1


@pytest.mark.parametrize("cosine", [True, False])
def test_scores_are_those_of_the_definition(cosine):
    queries, gallery = images(20, 0), images(60, 1)
    found = search(queries, gallery, "test", cosine)
    slow = {i: reference(queries, gallery, i, cosine) for i in range(20)}
    assert found.query.tolist() == [i for i in slow if slow[i]]
    for place, index in enumerate(found.query):
        assert found.precision[place] == pytest.approx(slow[index][0])
        assert found.first[place] == slow[index][1]
        assert found.rank[place] == slow[index][2]
        assert gallery.identities[found.nearest[place]] == queries.identities[index]
    precision, first = found.scores()
    assert precision == pytest.approx(100 * np.mean([s[0] for s in slow.values() if s]))
    assert first == pytest.approx(100 * np.mean([s[1] for s in slow.values() if s]))


def test_scores_of_a_group_are_the_mean_of_its_queries():
    found = search(images(20, 0), images(60, 1), "test")
    chosen = found.identity == 2
    assert chosen.any() and not chosen.all()
    assert found.scores(chosen)[0] == pytest.approx(100 * found.precision[chosen].mean())
    assert np.isnan(found.scores(np.zeros(len(chosen), dtype=bool))).all()


def test_images_of_the_querys_own_camera_do_not_count():
    rows = np.eye(3, dtype=np.float32)[[0, 0, 1]]
    gallery = SearchImages(rows, np.array([7, 7, 8]), np.array([0, 1, 0]), ["same camera", "other camera", "another"])
    found = search(gallery.part(np.array([0])), gallery, "test", best=3)
    assert found.top.tolist() == [[1, 2, -1]] and found.right.tolist() == [[True, False, False]]
    assert found.matches.tolist() == [1]


def test_no_right_image_at_all_is_an_error():
    alone = SearchImages(np.ones((2, 3), dtype=np.float32), np.array([0, 1]), np.array([0, 1]), ["a", "b"])
    with pytest.raises(ValueError, match="no query has an image of the same identity"):
        search(alone, alone, "test")


def test_groups_by_matches():
    groups = groups_by_matches(np.array([1, 1, 2, 5, 9, 9]))
    assert {name: mask.sum() for name, mask in groups.items()} == {
        "1 right images": 2,
        "2 to 5 right images": 2,
        "9 right images": 2,
    }
    assert list(groups_by_matches(np.array([4, 4, 4]))) == ["4 right images"]
