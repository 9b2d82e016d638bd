"""Retrieval by Market-1501's rule: average precision and rank of each query, and what it found."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CHUNK = 256


@dataclass
class Query:
    """A query with at least one right image in the gallery.

    ``precision`` is its average precision, ``rank`` the place of the best right image, from 1, and ``nearest`` its
    path. ``best`` are the first images that were found: path, and whether it is right.
    """

    path: str
    precision: float
    rank: int
    nearest: str
    best: list[tuple[str, bool]]


@dataclass
class SearchImages:
    """(N, D) features, (N,) identities and cameras, and paths of images that are searched for or in."""

    rows: np.ndarray
    identities: np.ndarray
    cameras: np.ndarray
    paths: list[str]


def search(queries: SearchImages, gallery: SearchImages, cosine: bool = True, best: int = 6) -> list[Query]:
    """Rank the gallery for each query; images of the query's identity from its own camera do not count.

    Args:
        queries: what is searched for.
        gallery: where.
        cosine: compare directions; else Euclidean distances.
        best: how many of the first images are kept.

    Raises:
        ValueError: where no query has a right image in the gallery.
    """
    ours, theirs = (_unit(i.rows) if cosine else np.asarray(i.rows, dtype=np.float32) for i in (queries, gallery))
    lengths, found = (theirs**2).sum(1), []
    for begin in range(0, len(ours), CHUNK):
        distances = lengths - 2 * ours[begin : begin + CHUNK] @ theirs.T
        for index, order in enumerate(np.argsort(distances, axis=1, kind="stable"), begin):
            right = gallery.identities[order] == queries.identities[index]
            keep = ~(right & (gallery.cameras[order] == queries.cameras[index]))
            order, right = order[keep], right[keep]
            places = np.flatnonzero(right)
            if not len(places):
                continue
            precision = float(np.mean(np.arange(1, len(places) + 1) / (places + 1)))
            first = [(gallery.paths[i], bool(same)) for i, same in zip(order[:best], right[:best], strict=True)]
            nearest = gallery.paths[order[places[0]]]
            found.append(Query(queries.paths[index], precision, int(places[0]) + 1, nearest, first))
    if not found:
        raise ValueError("no query has an image of the same identity, by another camera, in the gallery")
    return found


def scores(queries: list[Query]) -> tuple[float, float]:
    """mAP and Rank-1 in percent."""
    both = np.mean([(query.precision, query.rank == 1) for query in queries], axis=0)
    return 100 * float(both[0]), 100 * float(both[1])


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
