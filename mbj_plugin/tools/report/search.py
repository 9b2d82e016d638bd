"""Retrieval by Market-1501's rule: average precision and rank of each query, and what it found."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mbj_plugin.longtail import GROUPS, class_groups

CHUNK = 256
SCORES = ("mAP", "mINP", "Rank-1")


@dataclass
class Query:
    """A query with at least one right image in the gallery.

    ``precision`` is its average precision, ``inverse_penalty`` the share of right images up to the last of them (mINP
    is its mean), ``rank`` the place of the best right image, from 1, and ``nearest`` its path. ``best`` are the first
    images that were found: path, and whether it is right.
    """

    path: str
    identity: int
    precision: float
    inverse_penalty: float
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

    Directions are compared, or without ``cosine`` Euclidean distances. The first ``best`` images of each query are
    kept.
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
            penalty, who = len(places) / (int(places[-1]) + 1), int(queries.identities[index])
            found.append(Query(queries.paths[index], who, precision, penalty, int(places[0]) + 1, nearest, first))
    if not found:
        raise ValueError("no query has an image of the same identity, by another camera, in the gallery")
    return found


def scores(queries: list[Query]) -> dict[str, float]:
    """mAP, mINP and Rank-1 in percent."""
    means = np.mean([(query.precision, query.inverse_penalty, query.rank == 1) for query in queries], axis=0)
    return dict(zip(SCORES, (100 * means).tolist(), strict=True))


def scores_by_size(sizes: dict[str, int], queries: list[Query], separator: str) -> dict[str, float]:
    """Scores by the size of the class that an identity had in training; keys like "tail mAP".

    ``separator`` is what stands before the identity in the name of its class.
    """
    groups, identities = class_groups(list(sizes.values())), [name.rpartition(separator)[2] for name in sizes]
    group_of = {identities[label]: group for group in GROUPS for label in groups[group]}
    parts = {group: [query for query in queries if group_of.get(str(query.identity)) == group] for group in GROUPS}
    values = {name: scores(part) for name, part in parts.items() if part}
    return {f"{name} {key}": values[name][key] for key in SCORES for name in values}


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
