"""Does more data jitter more (paper, Section 3.1 and Fig. 2)? Rows, a table and a figure for docs/results/jitter.md.

    python -m benchmarks.studies.jitter                              scikit-learn's digits
    python -m benchmarks.studies.jitter --data FOLDER --seeds 2      CIFAR-10

One class is cut to a tail, the others to several sizes; one model is trained for each size and seed, and the features
of the tail images are watched over iterations. What "more data" means depends on what is held equal. Control
"iterations": every size trains for the same number of iterations, so few images are seen many times. Control "epochs":
every size sees each image equally often, so few images mean few iterations. The paper does not say which it held.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

import mbj_plugin.timm.models  # registers resnet32_cifar
from benchmarks.classification.data import Images, class_ranks, load_images
from benchmarks.classification.recipe import STATISTICS, crop_and_flip, normalize, pad_images
from benchmarks.tables import markdown
from mbj_plugin import diagnostics
from mbj_plugin.command_line import one_line
from mbj_plugin.files import write
from mbj_plugin.tools.trainer.data import Digits

CONTROLS = ("iterations", "epochs")
PHASES = ("before the decay", "at the end")
Rows = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Study:
    """How every model is trained, by SGD with momentum 0.9, and watched."""

    levels: tuple[int, ...]  # images of each class but the tail
    tail_size: int  # images of the tail class; each is watched
    tail_class: int = -1
    iterations: int = 4000  # of the largest level
    window: int = 100  # iterations that are watched, before the decay and at the end
    batch_size: int = 32
    lr: float = 0.1
    decay_at: float = 0.6  # of the run; from there on the learning rate is multiplied by decay_rate
    decay_rate: float = 0.1
    weight_decay: float = 5e-4  # on every parameter
    depth: int = 8  # of the CIFAR ResNet
    width: int = 16
    shrink: int = 1  # blocks of so many pixels a side are averaged into one
    padding: int = 1  # pixels that a random crop moves an image by
    flip: bool = False


DIGITS = Study(levels=(100, 50, 20, 10), tail_size=5)
CIFAR = Study(levels=(500, 200, 100, 50), tail_size=20, width=12, shrink=2, padding=2, flip=True)


def load_digits() -> Images:
    """scikit-learn's digits in the shape of :class:`Images`, (N, 8, 8, 1) uint8; train and validation as one part."""
    train, more, test = (Digits(split) for split in ("train", "validation", "test"))
    labels = np.array(train.targets + more.targets)
    images = np.concatenate([train.images, more.images])[..., None]
    return Images(images, labels, class_ranks(labels, 0), test.images[..., None], np.array(test.targets), "digits")


def cut(images: Images, level: int, study: Study, seed: int) -> Images:
    """The training set of one level: a draw by the seed, in which smaller levels lie inside larger ones and the tail
    images are the same in all."""
    wanted = np.full(images.train_labels.max() + 1, level)
    wanted[study.tail_class] = study.tail_size
    rank = class_ranks(images.train_labels, seed)
    keep = rank < wanted[images.train_labels]
    return dataclasses.replace(
        images, train=images.train[keep], train_labels=images.train_labels[keep], train_rank=rank[keep]
    )


def iterations_of(images: int, largest: int, study: Study, control: str) -> int:
    """How long a training set of so many images is trained for, where the largest level has ``largest``."""
    if control == "iterations":
        return study.iterations
    return round(study.iterations / (largest // study.batch_size) * (images // study.batch_size))


def train_and_watch(images: Images, study: Study, iterations: int, seed: int) -> Rows:
    """Train one model and watch the tail images' features.

    Args:
        images: what :func:`cut` gives.
        study: how.
        iterations: how long.
        seed: of the weights and the batches.

    Returns:
        One row for each of PHASES: what :func:`jitter` gives, "train_loss", "train_accuracy", "test_error" and
        "tail_error" in percent.
    """
    images = images.shrunk(study.shrink)
    num_classes = int(images.train_labels.max()) + 1
    tail = study.tail_class % num_classes
    stats = torch.tensor(STATISTICS[num_classes]) if images.train.shape[-1] == 3 else torch.tensor([[0.305], [0.376]])
    labels = torch.from_numpy(images.train_labels)
    clean = normalize(torch.from_numpy(images.train), stats)
    test = normalize(torch.from_numpy(images.test), stats), torch.from_numpy(images.test_labels)
    padded = pad_images(torch.from_numpy(images.train), study.padding)
    torch.manual_seed(seed)
    shape = {"num_classes": num_classes, "in_chans": images.train.shape[-1]}
    model: Any = timm.create_model("resnet32_cifar", depth=study.depth, width=study.width, **shape)
    optimizer = torch.optim.SGD(model.parameters(), study.lr, momentum=0.9, weight_decay=study.weight_decay)
    decay = int(iterations * study.decay_at)
    ends = dict(zip((decay, iterations), PHASES, strict=True))
    rows, watched = [], []
    batches = _batches(len(labels), study, np.random.default_rng(seed))
    for iteration in range(1, iterations + 1):
        if iteration == decay + 1:
            optimizer.param_groups[0]["lr"] *= study.decay_rate
        draw = next(batches)
        crops = normalize(crop_and_flip(padded, draw, study.padding), stats)
        loss = nn.functional.cross_entropy(model.train()(crops), labels[draw[:, 0]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if any(end - study.window < iteration <= end for end in ends):
            watched.append(_features(model, clean[labels == tail]))
        if iteration in ends:
            lr = optimizer.param_groups[0]["lr"]
            rows.append({"phase": ends[iteration], "iteration": iteration, "lr": lr} | jitter(torch.stack(watched, 1)))
            rows[-1] |= _state(model, (clean, labels), test, tail)
            watched = []
    return rows


def jitter(features: Tensor) -> dict[str, Any]:
    """Of (images, iterations, D) features: "jitter" (rad^2, mean over the images of the angular variance over the
    iterations), "jitter_one" (of the first image) and "curve" ([iterations, rad^2] as the window grows)."""
    window = features.shape[1]
    marks = sorted({m for m in np.unique(np.geomspace(2, window, 12).round().astype(int))})
    variances = torch.stack([angular_variance(features[:, :mark]) for mark in marks])
    return {
        "jitter": float(variances[-1].mean()),
        "jitter_one": float(variances[-1, 0]),
        "curve": [[int(mark), float(v.mean())] for mark, v in zip(marks, variances, strict=True)],
    }


def angular_variance(vectors: Tensor) -> Tensor:
    """(...) angular variance in rad^2 of (..., T, D), T features of each instance."""
    instances, times = vectors.shape[:-2], vectors.shape[-2]
    owner = torch.arange(instances.numel()).repeat_interleave(times)
    return diagnostics.angular_variance(vectors.flatten(0, -2), owner, instances.numel()).reshape(instances)


def _batches(count: int, study: Study, rng: np.random.Generator) -> Iterator[Tensor]:
    """Endless (B, 4) draws: image, top, left, flip; epochs without the incomplete last batch."""
    while True:
        order = rng.permutation(count)
        for begin in range(0, count - study.batch_size + 1, study.batch_size):
            draw = np.zeros((study.batch_size, 4), dtype=np.int64)
            draw[:, 0] = order[begin : begin + study.batch_size]
            draw[:, 1:3] = rng.integers(0, 2 * study.padding + 1, (study.batch_size, 2))
            draw[:, 3] = rng.integers(0, 2, study.batch_size) * study.flip
            yield torch.from_numpy(draw)


@torch.no_grad()
def _features(model: Any, images: Tensor) -> Tensor:
    """(N, D) of the model as it would be used now: in evaluation mode, on images that are not augmented. So what moves
    is the model alone."""
    model.eval()
    return model.forward_head(model.forward_features(images), pre_logits=True)


@torch.no_grad()
def _state(model: nn.Module, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], tail: int) -> dict[str, float]:
    """How far the training has come."""
    model.eval()
    output, seen = (torch.cat([model(part) for part in images.split(1000)]) for images, _ in (train, test))
    right = seen.argmax(1) == test[1]
    return {
        "train_loss": float(nn.functional.cross_entropy(output, train[1])),
        "train_accuracy": 100 * float((output.argmax(1) == train[1]).double().mean()),
        "test_error": 100 * float((~right).double().mean()),
        "tail_error": 100 * float((~right[test[1] == tail]).double().mean()),
    }


def run_study(images: Images, study: Study, seeds: int) -> Iterator[dict[str, Any]]:
    """Rows of all models: those of :func:`train_and_watch` with "level", "seed", "control" and "iterations"."""
    for seed in range(seeds):
        sets = {level: cut(images, level, study, seed) for level in sorted(study.levels, reverse=True)}
        largest = len(next(iter(sets.values())).train)
        # The largest level trains for the same iterations under both controls: one model serves both.
        trained: dict[tuple[int, int], Rows] = {}
        for control in CONTROLS:
            for level, of_level in sets.items():
                iterations = iterations_of(len(of_level.train), largest, study, control)
                if (level, iterations) not in trained:
                    trained[level, iterations] = train_and_watch(of_level, study, iterations, seed)
                for row in trained[level, iterations]:
                    yield {"control": control, "level": level, "seed": seed, "iterations": iterations} | row


def table(rows: Rows) -> str:
    """A Markdown table for each control and phase: mean ± standard deviation over the seeds, and how often the larger
    of two levels jitters more."""
    parts = []
    for control in CONTROLS:
        for phase in PHASES:
            chosen = [row for row in rows if (row["control"], row["phase"]) == (control, phase)]
            parts.append(f"{control} equal, {phase} (learning rate {chosen[0]['lr']:g}): {concordance(chosen)}")
            lines = []
            for level in sorted({row["level"] for row in chosen}, reverse=True):
                runs = [row for row in chosen if row["level"] == level]
                cells = [_spread([run[key] for run in runs], 5) for key in ("jitter", "jitter_one", "train_loss")]
                lines.append([level, runs[0]["iterations"], *cells, _spread([r["train_accuracy"] for r in runs], 1)])
            head = ["images per class", "iterations", "jitter, rad^2", "of one image", "train loss", "train acc., %"]
            parts.append(markdown(head, lines))
    return "\n\n".join(parts)


def concordance(rows: Rows) -> str:
    """In how many pairs of levels of one seed the larger level jitters more, in words."""
    pairs = [(a, b) for a in rows for b in rows if a["seed"] == b["seed"] and a["level"] > b["level"]]
    more, seeds = sum(a["jitter"] > b["jitter"] for a, b in pairs), len({row["seed"] for row in rows})
    return f"more data jitters more in {more} of {len(pairs)} pairs of sizes ({seeds} seeds)"


def _spread(values: list[float], digits: int) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def draw(rows: Rows, path: Path, title: str) -> None:
    """Fig. 2 of the paper: a panel for each control and phase, a line for each level, its mean over seeds with a band
    of one standard deviation.

    Args:
        rows: of :func:`run_study`.
        path: of the PNG.
        title: of the whole figure.
    """
    from mbj_plugin.tools.report.style import COLOURS, LINES, MARKERS, drawing

    with drawing(path, 4.2 * len(PHASES), 3.1 * len(CONTROLS) + 0.3) as figure:
        axes = figure.subplots(len(CONTROLS), len(PHASES), sharex=True)
        for panel, axis in enumerate(axes.flat):
            control, phase = CONTROLS[panel // 2], PHASES[panel % 2]
            chosen = [row for row in rows if (row["control"], row["phase"]) == (control, phase)]
            for index, level in enumerate(sorted({row["level"] for row in chosen}, reverse=True)):
                curves = np.array([row["curve"] for row in chosen if row["level"] == level])
                marks, values = curves[0, :, 0], curves[..., 1]
                mean, spread = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else 0 * values[0]
                colour = COLOURS[index % 8]
                axis.plot(marks, mean, color=colour, ls=LINES[index % 8], marker=MARKERS[index % 8], label=str(level))
                low = np.maximum(mean - spread, values.min(0))
                axis.fill_between(marks, low, mean + spread, color=colour, alpha=0.15, lw=0)
            axis.set_title(f"{control} equal, {phase} (lr {chosen[0]['lr']:g})")
            axis.set(yscale="log", xlabel="iterations watched", ylabel="angular variance, rad²")
        axes[0][0].legend(title="images per other class", ncols=2)
        figure.suptitle(title)


def main(argv: list[str] | None = None) -> None:
    """The command."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", metavar="PATH", help="folder with torchvision's CIFAR-10, or an .npz (default: digits)")
    p.add_argument("--seeds", type=int, default=3, help="models of each size (default: %(default)s)")
    p.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    p.add_argument("--output", default="output/jitter", type=Path, help="folder (default: %(default)s)")
    args = p.parse_args(argv)
    torch.set_num_threads(args.threads)
    with one_line("jitter", also="benchmarks"):
        images, study = (load_images("cifar10_lt", args.data), CIFAR) if args.data else (load_digits(), DIGITS)
    args.output.mkdir(parents=True, exist_ok=True)
    content = {
        "dataset": "cifar10_lt" if args.data else "sklearn/digits",
        "source": images.source,
        "sha256": images.sha256,
        "study": dataclasses.asdict(study),
        "versions": {module.__name__: module.__version__ for module in (mbj_plugin, timm, torch)}
        | {"python": platform.python_version()},
    }
    rows: Rows = []
    for row in run_study(images, study, args.seeds):
        rows.append(row)
        # After each model, so that an interrupted run leaves what it has.
        write(args.output / "rows.json", json.dumps(content | {"rows": rows}, indent=1))
        print(*(f"{key} {row[key]}" for key in ("control", "seed", "level", "phase", "jitter")), flush=True)
    title = f"{content['dataset']}: {study.tail_size} tail images, mean of {args.seeds} seed{'s' * (args.seeds > 1)}"
    draw(rows, args.output / "jitter.png", title)
    write(args.output / "table.md", table(rows) + "\n")
    print(f"\n{table(rows)}\n\nWritten to {args.output}: rows.json, table.md, jitter.png")


if __name__ == "__main__":
    main()
