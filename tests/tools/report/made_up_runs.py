"""Runs that no training made, with every part."""

import numpy as np

from mbj_plugin.diagnostics.groups import group_errors
from mbj_plugin.tools.report.run import Features, RunRecord, SavedMemory, Scores

COUNTS = np.array([120, 60, 30, 10, 4])


def scores(name, truth, answers):
    """Of the answers, counted."""
    images = np.bincount(truth, minlength=5)
    wrong = np.bincount(truth[truth != answers], minlength=5)
    by_class = np.array([100 * w / n if n else np.nan for w, n in zip(wrong, images, strict=True)])
    return Scores(name, group_errors(images, wrong, COUNTS), by_class, answers)


def classifier_run(name, seed=0, with_memory=True):
    """A run with every part; one classifier."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(5), 8)
    run = RunRecord(name, class_counts=COUNTS, truth=truth, test_images=40)
    answers = np.where(rng.random(40) < 0.7, truth, rng.integers(0, 5, 40))
    run.classifiers = {"batch": scores("cross-entropy", truth, answers)}
    run.curves = {"error, tail": ([1.0, 2.0], [90.0, 40.0]), "learning rate": ([1.0, 2.0], [0.1, 0.01])}
    run.train_features = Features(rng.normal(size=(40, 8)) + np.eye(8)[truth], truth)
    run.diagnostics = [{"step": s, "mbj/probe_jitter_tail": 1 / s, "mbj/feature/age_tail": s} for s in (1, 2, 3)]
    if with_memory:
        labels = np.array([2, 3, 3, 4, 4, 4])
        run.memories = [SavedMemory("feature", 10, rng.normal(size=(6, 8)).astype(np.float32), labels, np.arange(6))]
    return run


def write(path, text=""):
    """A file and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
