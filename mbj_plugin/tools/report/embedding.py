"""Fig. 1 of the paper: the embedding by t-SNE, with the memorised rows of tail classes over the live features."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import patheffects
from sklearn.manifold import TSNE

from mbj_plugin.longtail import class_groups
from mbj_plugin.tools.report.page import Section
from mbj_plugin.tools.report.run import RunRecord, SavedMemory, colour_of
from mbj_plugin.tools.report.style import COLOURS, MARKERS, picture, shown

ALL_CLASSES = 10  # more cannot be told apart
HEAD_SHOWN, TAIL_SHOWN = 3, 6
ROWS_PER_CLASS = 40
#: (what, (N, D) rows or (N, 2) places, (N,) labels)
Cloud = tuple[str, np.ndarray, np.ndarray]


def embedding_section(runs: list[RunRecord]) -> Section:
    """A figure for each run with features."""
    section = Section(
        "The embedding (Fig. 1)",
        "t-SNE of the directions of the classifier's inputs, model in evaluation mode. Tail classes are black, each "
        "with its mark, the others grey; test images are hollow. Crosses in the run's colour are memorised rows of "
        "tail classes, made by past models: where they spread beyond the black marks, the memory widens the class.",
    )
    for number, run in enumerate(runs):
        if run.train_features is not None and run.class_counts is not None:
            with run.part("embedding"):
                _draw(section, run, number, COLOURS[colour_of(runs, number)])
    return section if section.figures else Section(section.title)


def shown_classes(counts: np.ndarray, memories: list[SavedMemory]) -> np.ndarray:
    """Classes of the picture: all of a few; of many the largest, and the tail classes with the most memorised rows."""
    counts = np.asarray(counts)
    if len(counts) <= ALL_CLASSES:
        return np.flatnonzero(counts > 0)
    tail = class_groups(counts)["tail"]
    held = np.zeros(len(counts), dtype=np.int64)
    for memory in memories:
        held += np.bincount(memory.labels, minlength=len(counts))
    tail = tail[(counts[tail] > 0)]
    tail = tail[np.argsort(-held[tail], kind="stable")][:TAIL_SHOWN]
    return np.sort(np.concatenate([np.argsort(-counts, kind="stable")[:HEAD_SHOWN], tail]))


def _draw(section: Section, run: RunRecord, number: int, colour: str) -> None:
    counts = np.asarray(run.class_counts)
    classes = shown_classes(counts, run.memories)
    tail = np.intersect1d(class_groups(counts)["tail"], classes)
    train, test = run.train_features, run.test_features
    assert train is not None
    clouds: list[Cloud] = [("training images", *_chosen(train.rows, train.labels, classes))]
    if test is not None:
        clouds.append(("test images", *_chosen(test.rows, test.labels, classes)))
    for memory in run.memories:
        newest = np.argsort(memory.ages, kind="stable")
        rows, labels = _chosen(memory.rows[newest], memory.labels[newest], tail)
        clouds += [(f"memorised {memory.kind}s of the tail", rows, labels)] if len(labels) else []
    places = np.split(_tsne(np.concatenate([c[1] for c in clouds])), np.cumsum([len(c[2]) for c in clouds])[:-1])
    said = ", ".join(f"{len(labels):,} {what}" for what, _, labels in clouds)
    caption = f"{run.name}: {said}; {len(classes)} of {len(counts)} classes."
    with picture(section, f"embedding-{number}", "t-SNE of the features", caption, 4.8, 4.6) as figure:
        axis = figure.subplots()
        for (what, _, labels), place in zip(clouds, places, strict=True):
            _draw_cloud(axis, what, place, labels, tail, colour)
        _name_classes(axis, run, places[0], clouds[0][2])
        axis.set(xticks=[], yticks=[], xlabel="t-SNE 1, no unit", ylabel="t-SNE 2, no unit", title=shown(run.name))
        axis.grid(False)


def _draw_cloud(axis: Any, what: str, place: np.ndarray, labels: np.ndarray, tail: np.ndarray, colour: str) -> None:
    for c in np.unique(labels):
        of_tail = np.flatnonzero(tail == c)
        edge = "black" if len(of_tail) else "#9A9A9A"
        marker = MARKERS[int(of_tail[0]) % len(MARKERS)] if len(of_tail) else "."
        look: dict[str, Any] = {"marker": marker, "s": 22, "facecolors": edge, "edgecolors": edge, "zorder": 3}
        if what == "test images":
            look |= {"s": 14, "facecolors": "none", "linewidths": 0.7, "zorder": 1}
        elif what.startswith("memorised"):
            look = {"marker": "x", "s": 24, "c": colour, "linewidths": 1.0, "zorder": 2}
        axis.scatter(*place[labels == c].T, **look)


def _chosen(rows: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first rows of each class."""
    found = [np.flatnonzero(labels == c)[:ROWS_PER_CLASS] for c in classes]
    index = np.concatenate(found) if found else np.empty(0, dtype=np.int64)
    return np.asarray(rows)[index], np.asarray(labels)[index]


def _tsne(rows: np.ndarray) -> np.ndarray:
    """(N, 2) places of (N, D) directions; the same rows give the same places."""
    if len(rows) < 5:
        raise ValueError(f"t-SNE needs more than {len(rows)} features")
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    perplexity = min(30.0, (len(rows) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(unit.astype(np.float64))


def _name_classes(axis: Any, run: RunRecord, place: np.ndarray, labels: np.ndarray) -> None:
    """Write the name of each class above its training images."""
    for c in np.unique(labels):
        name = shown(run.class_name(int(c)), f"class {c}")
        where = (np.median(place[labels == c, 0]), np.quantile(place[labels == c, 1], 0.9))
        text = axis.annotate(
            name, where, xytext=(0, 5), textcoords="offset points", weight="bold", ha="center", zorder=4
        )
        text.set_path_effects([patheffects.withStroke(linewidth=2.5, foreground="white")])
