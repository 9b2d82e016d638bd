"""``tools/analyze_jitter.py``: does more data jitter more? Trains the models, writes rows, a figure and a table."""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch

import mbj_plugin
from benchmarks.classification.data import Images
from benchmarks.classification.settings import NUM_CLASSES
from benchmarks.jitter.study import CONTROLS, PHASES, Study, cut, iterations_of, load_study, train_and_watch
from mbj_plugin.files import write

Rows = list[dict[str, Any]]


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description="Does more data jitter more (paper, Section 3.1 and Fig. 2)? One class is cut to a tail, the "
        "others to several sizes; one model is trained for each size and seed, and the features of the tail images are "
        "watched over iterations. scikit-learn's digits, or CIFAR with --data."
    )
    p.add_argument(
        "--data", metavar="PATH", help="folder with torchvision's CIFAR folders or <dataset>.npz, or an .npz"
    )
    p.add_argument(
        "--dataset", choices=sorted(NUM_CLASSES), default="cifar10_lt", help="of --data (default: %(default)s)"
    )
    p.add_argument("--seeds", type=int, default=3, help="models of each size (default: %(default)s)")
    p.add_argument("--control", choices=[*CONTROLS, "both"], default="both", help="what is held equal (default: both)")
    for name, kind, text in (
        ("tail-size", int, "training images of the tail class"),
        ("tail-class", int, "the class that is cut; -1 is the last"),
        ("iterations", int, "of the largest level"),
        ("window", int, "iterations that are watched, before the decay of the learning rate and at the end"),
        ("batch-size", int, "images of a step"),
        ("lr", float, "learning rate"),
        ("decay-rate", float, "the learning rate is multiplied by it after 60 %% of the run; 1 leaves it as it is"),
        ("weight-decay", float, "on every parameter"),
        ("padding", int, "pixels that a random crop moves an image by; 0 turns it off"),
        ("depth", int, "of the CIFAR ResNet, 6n + 2"),
        ("width", int, "channels of its first stage"),
        ("shrink", int, "average blocks of so many pixels a side into one"),
    ):
        p.add_argument(f"--{name}", type=kind, help=text)
    p.add_argument("--flip", action=argparse.BooleanOptionalAction, help="mirror half of the images")
    p.add_argument("--levels", type=int, nargs="+", help="images of each other class, one model each")
    p.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    p.add_argument("--output", default="output/analyze_jitter", help="folder (default: %(default)s)")
    return p


def main(argv: list[str] | None = None) -> None:
    """The command."""
    args = parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        _main(args)
    except ValueError as error:
        sys.exit(f"analyze_jitter: error: {error}")


def _main(args: argparse.Namespace) -> None:
    try:
        from benchmarks.jitter.figure import draw_jitter_study
    except ModuleNotFoundError as error:
        raise ValueError(f"the figure needs {error.name}: pip install '.[report]' in a clone of mbj_plugin") from error
    if args.seeds < 1:
        raise ValueError(f"--seeds must be 1 or more, got {args.seeds}")
    images, study = load_study(args.data, args.dataset)
    names = [field.name for field in dataclasses.fields(Study)]
    given = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
    study = dataclasses.replace(study, **given | ({"levels": tuple(args.levels)} if args.levels else {}))
    controls = CONTROLS if args.control == "both" else (args.control,)
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    rows: Rows = []
    for row in run_study(images, study, args.seeds, controls):
        rows.append(row)
        # After each model, so that an interrupted run leaves what it has.
        write(folder / "rows.json", json.dumps(_content(args, study, images, rows), indent=1))
        print(
            f"seed {row['seed']}, {row['level']:>5} images, {row['control']} equal, {row['phase']:<16} "
            f"{row['jitter']:.6f} rad^2, train loss {row['train_loss']:.4f}",
            flush=True,
        )
    draw_jitter_study(rows, folder / "jitter.png", _title(args, study))
    text = table(rows)
    (folder / "table.md").write_text(text + "\n")
    print(f"\n{text}\n\nWritten to {folder}: rows.json, table.md, jitter.png")


def run_study(images: Images, study: Study, seeds: int, controls: tuple[str, ...] = CONTROLS) -> Iterator[dict]:
    """Rows of all models: those of :func:`train_and_watch` with "level", "seed", "control" and "iterations"."""
    for seed in range(seeds):
        sets = {level: cut(images, level, study, seed) for level in sorted(study.levels, reverse=True)}
        largest = len(next(iter(sets.values())).train)
        # The largest level trains for the same iterations under both controls: one model serves both.
        trained: dict[tuple[int, int], Rows] = {}
        plan = [
            (c, level, iterations_of(len(sets[level].train), largest, study, c)) for c in controls for level in sets
        ]
        for control, level, iterations in plan:
            if (level, iterations) not in trained:
                trained[level, iterations] = train_and_watch(sets[level], study, iterations, seed)
            for row in trained[level, iterations]:
                yield {"control": control, "level": level, "seed": seed, "iterations": iterations} | row


def table(rows: Rows) -> str:
    """A Markdown table for each control and phase: mean ± standard deviation over the seeds, and how often the larger
    of two levels jitters more."""
    parts = []
    for control in dict.fromkeys(row["control"] for row in rows):
        for phase in PHASES:
            chosen = [row for row in rows if (row["control"], row["phase"]) == (control, phase)]
            parts.append(f"{control} equal, {phase} (learning rate {chosen[0]['lr']:g}): {concordance(chosen)}")
            lines = ["| images per class | iterations | jitter, rad^2 | of one image | train loss | train acc., % |"]
            lines += ["|" + "---|" * 6]
            for level in sorted({row["level"] for row in chosen}, reverse=True):
                runs = [row for row in chosen if row["level"] == level]
                cells = [_spread([run[key] for run in runs], 5) for key in ("jitter", "jitter_one", "train_loss")]
                cells.append(_spread([run["train_accuracy"] for run in runs], 1))
                lines.append("| " + " | ".join([str(level), str(runs[0]["iterations"]), *cells]) + " |")
            parts.append("\n".join(lines))
    return "\n\n".join(parts)


def concordance(rows: Rows) -> str:
    """In how many pairs of levels of one seed the larger level jitters more, in words."""
    by_seed: dict[int, Rows] = {}
    for row in rows:
        by_seed.setdefault(row["seed"], []).append(row)
    pairs = [(a, b) for of in by_seed.values() for a in of for b in of if a["level"] > b["level"]]
    more = sum(a["jitter"] > b["jitter"] for a, b in pairs)
    return f"more data jitters more in {more} of {len(pairs)} pairs of sizes ({len(by_seed)} seeds)"


def _spread(values: list[float], digits: int) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def _title(args: argparse.Namespace, study: Study) -> str:
    name = "digits" if args.data is None else args.dataset
    return f"{name}: {study.tail_size} tail images, mean of {args.seeds} seed{'s' * (args.seeds > 1)}"


def _content(args: argparse.Namespace, study: Study, images: Images, rows: Rows) -> dict[str, Any]:
    return {
        "dataset": "sklearn/digits" if args.data is None else args.dataset,
        "source": images.source,
        "sha256": images.sha256,
        "study": dataclasses.asdict(study),
        "versions": {
            "mbj_plugin": mbj_plugin.__version__,
            "python": platform.python_version(),
            "timm": timm.__version__,
            "torch": torch.__version__,
        },
        "rows": rows,
    }
