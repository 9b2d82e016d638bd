"""``tools/after_training.py``: what costs nothing after training, side by side, for finished runs of ``train_timm``."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from mbj_plugin.batch_losses.checks import at_least_0
from mbj_plugin.command_line import OneLineParser, one_line
from mbj_plugin.logit_adjustment import (
    logit_adjusted,
    multiplicatively_adjusted,
    nearest_class_mean,
    retrained,
    tau_normalized,
)
from mbj_plugin.tools.finished_run import Classifier, FinishedRun, Images, memory_states
from mbj_plugin.tools.trainer.error_table import TABLES, error_table

METHODS = ("as-trained", "logit-adjustment", "multiplicative", "tau-norm", "class-mean", "retrained")
#: Strengths that ``--choose-on`` tries.
STRENGTHS = {
    "logit-adjustment": np.arange(0, 3.01, 0.1),
    "multiplicative": np.arange(0, 0.501, 0.025),
    "tau-norm": np.arange(0, 3.01, 0.1),
}
COLUMNS = ("error", "head", "medium", "tail", "many_shot", "medium_shot", "few_shot")
#: Of each classifier, the errors of :func:`group_errors`, and its tau or gamma.
Results = dict[str, tuple[dict[str, float], float | None]]


def parser() -> OneLineParser:
    p = OneLineParser(
        prog="after_training",
        description="Takes the finished run as it is, and puts other classifiers on its features: logit adjustment, "
        "additive and multiplicative, tau-normalisation, the nearest class mean, and one that is retrained from the "
        "memory in the checkpoint. Prints the test error of all of them, by class size; trains no feature.",
    )
    p.add_argument(
        "run", nargs="+", metavar="RUN", help="folder of a run of train_timm; of several (seeds), mean and spread"
    )
    p.add_argument("--tau", type=float, default=1.0, help="of logit adjustment and tau-norm (default: %(default)s)")
    p.add_argument("--gamma", type=float, default=0.2, help="of multiplicative adjustment (default: %(default)s)")
    p.add_argument(
        "--choose-on",
        metavar="SPLIT",
        help="choose tau and gamma by the mean error of the classes on this split of the run's data, on which the run "
        "was neither trained nor evaluated (the digits have 'validation')",
    )
    p.add_argument(
        "--write", choices=METHODS[1:], help="write a checkpoint with this classifier, which stock timm loads"
    )
    p.add_argument("--output", metavar="FILE", help="of --write (default: METHOD.pth.tar in RUN)")
    p.add_argument("--no-images", action="store_true", help="with --write: write without any image, print no table")
    p.add_argument(
        "--table", choices=TABLES, default="text", help="for the console, or to paste (default: %(default)s)"
    )
    p.add_argument("--data", metavar="FOLDER", help="the images, where the run's own settings do not lead to them")
    p.add_argument("--device", default="cpu", help="where the model runs (default: %(default)s)")
    return p


def main(argv: list[str] | None = None) -> None:
    """The command."""
    args = parser().parse_args(argv)
    logging.getLogger("timm").setLevel(logging.WARNING)
    with one_line("after_training"):
        _check(args)
        _compare(args)


def _compare(args: Namespace) -> None:
    results: list[Results] = []
    for folder in args.run:
        run = FinishedRun(Path(folder), args)
        rows = _classifiers(run, args)
        if not args.no_images:
            results.append({name: (run.errors(new), strength) for name, (new, strength) in rows.items()})
    if len(results) == 1 and args.table == "text":
        print(table(results[0]))
    elif results:
        errors = {name: [each[name][0] for each in results if name in each] for name in results[0]}
        print(error_table(errors, args.table))
    if args.write:
        path = Path(args.output or Path(folder) / f"{args.write}.pth.tar")
        run.write(rows[args.write][0], path)
        print(f"Written: {path}")


def _classifiers(run: FinishedRun, args: Namespace) -> dict[str, tuple[Classifier, float | None]]:
    if not args.no_images:
        run.read_images(args.choose_on)
    rows = {}
    for method in METHODS:
        try:
            rows[method] = classifier(run, method, args)
        except ValueError as error:
            if method == args.write:
                raise
            if not args.no_images:
                print(f"{method} is left out: {error}")
    return rows


def _check(args: Namespace) -> None:
    for folder in args.run:
        if not Path(folder).is_dir():
            raise ValueError(f"there is no folder {folder}: give the folder that a run of train_timm wrote")
    if args.write and len(args.run) > 1:
        raise ValueError(f"--write writes the checkpoint of one run, got {len(args.run)}")
    for name in ("tau", "gamma"):
        at_least_0(f"--{name}", getattr(args, name))
    if args.output and not args.write:
        raise ValueError("--output is the file of --write: say which classifier to write")
    if args.no_images and (not args.write or args.choose_on or args.write == "class-mean"):
        raise ValueError("--no-images needs a --write that takes no image: no class-mean, and no --choose-on")


def classifier(run: FinishedRun, method: str, args: Namespace) -> tuple[Classifier, float | None]:
    """The method's classifier, and its tau or gamma where it has one.

    Raises:
        ValueError: where this run has not what the method needs.
    """
    adjust: dict[str, Callable[[float], Classifier]] = {
        "logit-adjustment": partial(logit_adjusted, run.weight, run.bias, run.counts.tolist()),
        "multiplicative": partial(multiplicatively_adjusted, run.weight, run.counts.tolist()),
        "tau-norm": partial(tau_normalized, run.weight),
    }
    if method in adjust:
        strength = args.gamma if method == "multiplicative" else args.tau
        if run.validation is not None:
            strength = _best(adjust[method], STRENGTHS[method], run.validation, len(run.counts))
        return adjust[method](strength), strength
    if method == "as-trained":
        return logit_adjusted(run.weight, run.bias, [1] * len(run.weight), 0), None
    if method == "class-mean":
        if args.no_images:
            raise ValueError("it needs the training images")
        return nearest_class_mean(run.train.features, run.train.labels, len(run.counts)), None
    memory = memory_states(run.checkpoint).get("feature")
    if memory is None:
        raise ValueError("the checkpoint holds no memory of features (--mbj writes one)")
    rows, labels = (memory[key][:-1].cpu() for key in ("slot_rows", "slot_labels"))
    return retrained(rows, labels, run.weight, run.bias), None


def _best(adjust: Callable[[float], Classifier], strengths: np.ndarray, images: Images, num_classes: int) -> float:
    """The strength of the lowest mean error of the classes; the smallest of equal ones."""
    means = []
    for strength in strengths:
        seen, wrong = images.wrong(adjust(float(strength)), num_classes)
        means.append((wrong[seen > 0] / seen[seen > 0]).mean())
    return round(float(strengths[int(np.argmin(means))]), 3)


def table(rows: Results) -> str:
    """Test error in percent, a line for each classifier.

    Args:
        rows: name to the errors of :func:`group_errors`, and tau or gamma.
    """
    lines = [
        f"{'error, %':<18}{'tau':>7}{'all':>8} |{'head':>7}{'medium':>8}{'tail':>7} |{'many':>7}{'medium':>8}{'few':>7}"
    ]
    for name, (errors, strength) in rows.items():
        cells = [f"{errors[key]:.2f}" if key in errors else "-" for key in COLUMNS]
        tau = "" if strength is None else f"{strength:g}"
        lines.append(
            f"{name:<18}{tau:>7}{cells[0]:>8} |{cells[1]:>7}{cells[2]:>8}{cells[3]:>7} |"
            f"{cells[4]:>7}{cells[5]:>8}{cells[6]:>7}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
