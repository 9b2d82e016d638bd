"""Average precision and rank of each query against a slow reference."""

import numpy as np
import pytest

from mbj_plugin.tools.report.search import SearchImages, search


def images(count, seed, identities=5, cameras=3):
    rng = np.random.default_rng(seed)
    who, where = rng.integers(0, identities, count), rng.integers(0, cameras, count)
    rows = rng.normal(size=(count, 6)) + np.eye(6)[who % 6] * 1.5
    return SearchImages(rows.astype(np.float32), who, where, [f"{seed}-{i}" for i in range(count)])


def reference(queries, gallery, index, cosine):
    """(average precision, inverse penalty, rank, path) by the definition; None where no image is right."""
    ranked = []
    for j in range(len(gallery.paths)):
        if gallery.identities[j] == queries.identities[index] and gallery.cameras[j] == queries.cameras[index]:
            continue
        a, b = queries.rows[index].astype(float), gallery.rows[j].astype(float)
        if cosine:
            a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
        same = gallery.identities[j] == queries.identities[index]
        ranked.append((((a - b) ** 2).sum(), same, gallery.paths[j]))
    right = [same for _, same, _ in sorted(ranked)]
    if not any(right):
        return None
    precisions = [sum(right[: place + 1]) / (place + 1) for place, same in enumerate(right) if same]
    last = max(place for place, same in enumerate(right, 1) if same)
    path = sorted(ranked)[right.index(True)][2]
    return sum(precisions) / len(precisions), sum(right) / last, right.index(True) + 1, path


@pytest.mark.parametrize("cosine", [True, False])
def test_queries_are_ranked_by_the_definition(cosine, monkeypatch):
    monkeypatch.setattr("mbj_plugin.tools.report.search.CHUNK", 8)
    queries, gallery = images(20, 0), images(60, 1)
    found = search(queries, gallery, cosine)
    slow = {queries.paths[i]: reference(queries, gallery, i, cosine) for i in range(20)}
    assert [query.path for query in found] == [path for path in slow if slow[path]]
    for query in found:
        precision, penalty, rank, nearest = slow[query.path]
        assert (query.precision, query.inverse_penalty) == pytest.approx((precision, penalty))
        assert (query.rank, query.nearest) == (rank, nearest)


def test_images_of_the_querys_own_camera_do_not_count():
    rows = np.eye(3, dtype=np.float32)[[0, 0, 1]]
    gallery = SearchImages(rows, np.array([7, 7, 8]), np.array([0, 1, 0]), ["same camera", "other camera", "another"])
    (found,) = search(SearchImages(rows[:1], np.array([7]), np.array([0]), ["query"]), gallery, best=3)
    assert found.best == [("other camera", True), ("another", False)]
    alone = SearchImages(rows[:2], np.array([0, 1]), np.array([0, 1]), ["a", "b"])
    with pytest.raises(ValueError, match="no query"):
        search(alone, alone)
