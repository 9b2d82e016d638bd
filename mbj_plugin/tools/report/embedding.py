"""Fig. 1 of the paper: the embedding by t-SNE, live features first, then with the memorised tail rows over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import patheffects
from sklearn.manifold import TSNE

from mbj_plugin.longtail import class_groups
from mbj_plugin.tools.report.page import Figure, Section
from mbj_plugin.tools.report.run import Memory, Run
from mbj_plugin.tools.report.style import COLOURS, drawing, shown

ALL_CLASSES = 10  # more cannot be told apart
HEAD_SHOWN, TAIL_SHOWN = 3, 6
ROWS_PER_CLASS = 40
LOOKS: dict[str, dict[str, Any]] = {
    "training images": {"s": 22, "marker": "o", "zorder": 3},
    "test images": {"s": 14, "linewidths": 0.7, "zorder": 1},
}
MEMORISED: dict[str, Any] = {"s": 24, "marker": "x", "linewidths": 1.0, "zorder": 2}


def embedding_section(runs: list[Run], folder: Path) -> Section | None:
    """Two figures for each run with features; the map is computed once for both."""
    section = Section(
        "The embedding (Fig. 1)",
        "t-SNE of the directions of the classifier's inputs, model in evaluation mode. Tail classes are in colour, the "
        "others grey; a class's name stands above its training images. Crosses are memorised rows of tail classes, "
        "made by past models. t-SNE keeps neighbours, not distances: areas of two maps cannot be compared.",
    )
    for number, run in enumerate(runs):
        if run.train_features is None or run.class_counts is None:
            continue
        with run.part(f"embedding of {run.name}"):
            section.figures += _figures(run, folder, number)
    return section if section.figures else None


def shown_classes(counts: np.ndarray, memories: list[Memory]) -> np.ndarray:
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


def _figures(run: Run, folder: Path, number: int) -> list[Figure]:
    counts = np.asarray(run.class_counts)
    classes = shown_classes(counts, run.memories)
    tail = np.intersect1d(class_groups(counts)["tail"], classes)
    train, test = run.train_features, run.test_features
    assert train is not None
    parts = [("training images", *_chosen(train.rows, train.labels, classes))]
    if test is not None:
        parts.append(("test images", *_chosen(test.rows, test.labels, classes)))
    for memory in run.memories:
        newest = np.argsort(memory.ages, kind="stable")
        rows, labels = _chosen(memory.rows[newest], memory.labels[newest], tail)
        if len(labels):
            parts.append((f"memorised {memory.kind}s of the tail", rows, labels))
    places = np.split(_tsne(np.concatenate([p[1] for p in parts])), np.cumsum([len(p[2]) for p in parts])[:-1])
    clouds = [(what, place, labels) for (what, _, labels), place in zip(parts, places, strict=True)]
    live = [cloud for cloud in clouds if not cloud[0].startswith("memorised")]
    figures = []
    for drawn, title in ((live, "live features"), (clouds, "with memorised tail rows")):
        if drawn is clouds and len(live) == len(clouds):
            continue
        path = folder / f"embedding-{number}-{'memory' if drawn is clouds else 'live'}.png"
        draw_clouds(drawn, clouds, run, tail, f"{shown(run.name)}: {title}", path)
        said = ", ".join(f"{len(labels):,} {what}" for what, _, labels in drawn)
        figures.append(Figure(path, f"t-SNE of {run.name}, {title}: {said}.", f"{run.name}, {title}: {said}; "
                              f"{len(classes)} of {len(counts)} classes."))  # fmt: skip
    return figures


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


def draw_clouds(drawn: list[Any], clouds: list[Any], run: Run, tail: np.ndarray, title: str, path: Path) -> None:
    """The (what, (N, 2) places, (N,) labels) ``drawn``, in the frame of all ``clouds``."""
    everything = np.concatenate([place for _, place, _ in clouds])
    low, high = everything.min(0), everything.max(0)
    margin = 0.04 * (high - low) + 1e-9
    colours = {int(c): COLOURS[i % 7] for i, c in enumerate(tail)}
    with drawing(path, 4.8, 4.6) as figure:
        axis = figure.subplots()
        for what, place, labels in drawn:
            colour = [colours.get(int(c), "#9A9A9A") for c in labels]
            look = LOOKS.get(what, MEMORISED)
            fill = {"facecolors": "none", "edgecolors": colour} if what == "test images" else {"c": colour}
            axis.scatter(place[:, 0], place[:, 1], label=what, **look, **fill)
        _name_classes(axis, run, drawn[0], colours)
        axis.set_xlim(low[0] - margin[0], high[0] + margin[0])
        axis.set_ylim(low[1] - margin[1], high[1] + margin[1])
        axis.set_xticks([])
        axis.set_yticks([])
        axis.grid(False)
        axis.set_xlabel("t-SNE 1, no unit")
        axis.set_ylabel("t-SNE 2, no unit")
        axis.set_title(title)
        legend = figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        handles: list[Any] = legend.legend_handles
        for handle in handles:
            if handle is not None:
                handle.set_color("black")
                if handle.get_label() == "test images":
                    handle.set_facecolor("none")


def _name_classes(axis: Any, run: Run, cloud: Any, colours: dict[int, str]) -> None:
    """Write the name of each class of a cloud above it."""
    _, place, labels = cloud
    for c in np.unique(labels):
        text = axis.annotate(
            run.class_name(int(c)),
            (np.median(place[labels == c, 0]), np.quantile(place[labels == c, 1], 0.9)),
            xytext=(0, 5),
            textcoords="offset points",
            weight="bold",
            color=colours.get(int(c), "#444444"),
            ha="center",
            zorder=4,
        )
        text.set_path_effects([patheffects.withStroke(linewidth=2.5, foreground="white")])
