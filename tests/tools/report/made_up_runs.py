"""Runs that no training made, with every part."""

import numpy as np
import torch

from mbj_plugin.memory import MemoryBank
from mbj_plugin.tools.group_errors import group_errors
from mbj_plugin.tools.report.run import RunRecord, Scores

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
    run = RunRecord(name, class_counts=COUNTS, truth=truth, test_images=40, settings={"lr": seed})
    answers = np.where(rng.random(40) < 0.7, truth, rng.integers(0, 5, 40))
    run.classifiers = {"batch": scores("cross-entropy", truth, answers)}
    run.curves = {
        "error": {"": ([1.0, 2.0], [90.0, 40.0]), "cross-entropy": ([1.0, 2.0], [90.0, 40.0])},
        "learning rate": {"": ([1.0, 2.0, 3.0], [0.1, 0.01, 1e-5])},
    }
    run.diagnostics = [{"epoch": s, "mbj/feature/jitter_tail": 1 / s, "mbj/feature/age_tail": s} for s in (1, 2, 3)]
    if with_memory:
        bank = MemoryBank(10, 8)
        for label in (2, 3, 3, 4, 4, 4):  # of ages 5 to 0
            bank.enqueue(torch.from_numpy(rng.normal(size=(1, 8))), torch.tensor([label]))
        run.memories = {"feature": bank}
    return run


def write(path, text=""):
    """A file and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
