"""Retrieval: average precision and Rank-1 of each query, by group, and what the worst queries found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

CHUNK = 256
FOUND = ("query", "top", "right", "precision", "first", "matches", "nearest", "rank")


@dataclass
class Search:
    """Queries against a gallery by Market-1501's rule: images of the query's identity from its camera do not count.

    Q queries, those with at least one right image in the gallery; K best matches.

    ``query`` (Q,) and ``top`` (Q, K) are indices into ``query_paths`` and ``gallery_paths`` (-1 = none), ``right``
    (Q, K) says which match, ``precision`` (Q,) is the average precision and ``first`` (Q,) whether the best match is
    right, ``matches`` (Q,) the number of right images, ``identity`` (Q,) whom it shows, ``nearest`` (Q,) the best right
    image and ``rank`` (Q,) its place, from 1. ``groups`` maps a name to (Q,)
    bool.
    """

    title: str
    query: np.ndarray
    top: np.ndarray
    right: np.ndarray
    precision: np.ndarray
    first: np.ndarray
    matches: np.ndarray
    nearest: np.ndarray
    rank: np.ndarray
    identity: np.ndarray
    query_paths: list[str]
    gallery_paths: list[str]
    groups: dict[str, np.ndarray]
    note: str = ""

    def scores(self, chosen: np.ndarray | None = None) -> tuple[float, float]:
        """mAP and Rank-1 in percent, of the (Q,) chosen queries; NaN where there are none."""
        chosen = np.ones(len(self.query), dtype=bool) if chosen is None else chosen
        if not chosen.any():
            return float("nan"), float("nan")
        return 100 * float(self.precision[chosen].mean()), 100 * float(self.first[chosen].mean())


@dataclass
class SearchImages:
    """(N, D) features, (N,) identities and cameras, and paths of images that are searched for or in."""

    rows: np.ndarray
    identities: np.ndarray
    cameras: np.ndarray
    paths: list[str]

    def part(self, chosen: np.ndarray) -> SearchImages:
        """Some of them, by index."""
        paths = [self.paths[i] for i in chosen]
        return SearchImages(self.rows[chosen], self.identities[chosen], self.cameras[chosen], paths)


def search(queries: SearchImages, gallery: SearchImages, title: str, cosine: bool = True, best: int = 6) -> Search:
    """Rank the gallery for each query.

    Args:
        queries: what is searched for.
        gallery: where.
        title: of the search.
        cosine: compare directions; else Euclidean distances.
        best: K, how many matches are kept.

    Raises:
        ValueError: where no query has a right image in the gallery.
    """
    ours, theirs = (_unit(i.rows) if cosine else np.asarray(i.rows, dtype=np.float32) for i in (queries, gallery))
    lengths = (theirs**2).sum(1)
    found: dict[str, list] = {name: [] for name in FOUND}
    for begin in range(0, len(ours), CHUNK):
        distances = lengths - 2 * ours[begin : begin + CHUNK] @ theirs.T
        for offset, order in enumerate(np.argsort(distances, axis=1, kind="stable")):
            index = begin + offset
            same = gallery.identities[order] == queries.identities[index]
            keep = ~(same & (gallery.cameras[order] == queries.cameras[index]))
            order, same = order[keep], same[keep]
            if not same.any():
                continue
            ranks = np.flatnonzero(same)
            top = np.full(best, -1)
            top[: len(order[:best])] = order[:best]
            right = np.zeros(best, dtype=bool)
            right[: len(order[:best])] = same[:best]
            precision = np.mean(np.arange(1, len(ranks) + 1) / (ranks + 1))
            row = (index, top, right, precision, same[0], len(ranks), order[ranks[0]], ranks[0] + 1)
            for values, value in zip(found.values(), row, strict=True):
                values.append(value)
    if not found["query"]:
        raise ValueError("no query has an image of the same identity, by another camera, in the gallery")
    arrays: dict[str, Any] = {name: np.array(values) for name, values in found.items()}
    identity = queries.identities[arrays["query"]]
    return Search(title, **arrays, identity=identity, query_paths=queries.paths, gallery_paths=gallery.paths, groups={})


def groups_by_matches(matches: np.ndarray) -> dict[str, np.ndarray]:
    """Queries with few, some and many right images in the gallery, a third each where the numbers differ enough.

    Args:
        matches: (Q,) number of right images.
    """
    low, high = np.quantile(matches, (1 / 3, 2 / 3))
    masks = (matches <= low, (matches > low) & (matches <= high), matches > high)
    groups = {}
    for mask in masks:
        if mask.any():
            first, last = matches[mask].min(), matches[mask].max()
            groups[f"{first} right images" if first == last else f"{first} to {last} right images"] = mask
    return groups


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
