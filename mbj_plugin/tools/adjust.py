"""``mbj adjust RUN``: every classifier that a finished run can have without training a feature, side by side."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mbj_plugin import logit_adjustment as formulas
from mbj_plugin.checks import RANGES
from mbj_plugin.command_line import one_line
from mbj_plugin.timm.counts import counts_from_file
from mbj_plugin.tools.finished_run import Classifier, FinishedRun, Inputs
from mbj_plugin.tools.group_errors import group_errors
from mbj_plugin.tools.parser import OneLineParser, check_device
from mbj_plugin.tools.trainer.error_table import COLUMNS, TABLES, error_rows, text_table

#: What the run trained, and what comes of it: "batch" is the classifier of a run without MBJ.
METHODS = ("batch", "adjusted", "mbj", "tau-norm", "class-mean")
#: Values of tau that ``--choose-on`` tries.
TAUS = np.arange(0, 3.01, 0.1)
#: Of each classifier its errors in percent, and its tau.
Results = dict[str, tuple[dict[str, float], float | None]]


def parser() -> OneLineParser:
    p = OneLineParser(
        prog="mbj adjust",
        description="Compare several classifiers on the features of finished runs, which are not trained further: the "
        "batch classifier, which is the one of a run without MBJ; the same with logit adjustment; the "
        "memory classifier (mbj); tau-normalisation; and the nearest class mean. Prints their test errors by class "
        "size.",
    )
    p.add_argument(
        "run",
        nargs="+",
        metavar="RUN",
        help="folder of a run of mbj train or of timm's train.py; several runs are several seeds",
    )
    p.add_argument(
        "--tau",
        type=float,
        help="tau of logit adjustment and tau-norm (default: 1; for a run with balanced softmax, 1 is subtracted)",
    )
    p.add_argument(
        "--target-prior",
        metavar="FILE",
        help="JSON list with a whole number for each class, its frequency where the model is used (default: all equal)",
    )
    p.add_argument(
        "--choose-on",
        metavar="SPLIT",
        help="choose tau by the mean error of the classes on this split, which must hold no image that the "
        "run was trained or evaluated on (the digits have 'validation')",
    )
    p.add_argument(
        "--write",
        "--classifier",
        choices=METHODS,
        help="write a checkpoint with this classifier, which plain timm loads",
    )
    p.add_argument(
        "--output", metavar="FILE", help="file for --write, which must not exist yet (default: RUN/CLASSIFIER.pth.tar)"
    )
    p.add_argument("--table", choices=TABLES, default="text", help="format of the printed table (default: text)")
    p.add_argument("--data", metavar="FOLDER", help="folder of the images, if they have moved since the run")
    p.add_argument("--device", default="cpu", help="where the model runs (default: %(default)s)")
    return p


def main(argv: list[str] | None = None) -> None:
    """The command."""
    args = parser().parse_args(argv)
    logging.getLogger("timm").setLevel(logging.WARNING)
    with one_line("mbj adjust"):
        _check(args)
        _compare(args)


def _check(args: Namespace) -> None:
    if args.write and len(args.run) > 1:
        raise ValueError(f"--write writes the checkpoint of one run, got {len(args.run)}")
    if args.tau is not None:
        RANGES["tau"].checked("--tau", args.tau)
    if len({Path(folder).resolve() for folder in args.run}) < len(args.run):
        raise ValueError(f"a run is given twice: {' '.join(args.run)}")
    check_device(args.device)
    if args.output and not args.write:
        raise ValueError("--output is the file of --write: say which classifier to write")


def _compare(args: Namespace) -> None:
    results: list[Results] = []
    for folder in map(Path, args.run):
        run = FinishedRun(folder, args.device, args.data)
        if run.unfinished:
            print(f"{folder} is not finished: its checkpoint is of {run.unfinished}")
        rows = Adjustments(run, args)
        found = {method: rows.get(method, fatal=method == args.write) for method in METHODS}
        classifiers = {method: pair for method, pair in found.items() if pair is not None}
        results.append({name: (rows.errors(new), strength) for name, (new, strength) in classifiers.items()})
    print(table(results, args.table))
    if args.write:
        path = Path(args.output or folder / f"{args.write}.pth.tar")
        run.write(classifiers[args.write][0], path)
        print(f"Written: {path}")


class Adjustments:
    """The classifiers of one run, whose images are read here; ``args`` are those of the command."""

    def __init__(self, run: FinishedRun, args: Namespace) -> None:
        self.run, self.args, self.trained = run, args, run.classifiers()
        self.target = np.ones(len(run.counts))
        if args.target_prior:
            self.target = counts_from_file(args.target_prior).astype(float)
            if len(self.target) != len(run.counts) or self.target.min() <= 0:
                raise ValueError(
                    f"--target-prior {args.target_prior} needs {len(run.counts)} numbers > 0, one for each class"
                )
        self.evaluation, self.training = run.read_evaluation(), run.read_training()
        self.validation: Inputs | None = None
        if args.choose_on:
            self.validation = run.read_validation(args.choose_on, self.evaluation, self.training)

    def get(self, method: str, fatal: bool) -> tuple[Classifier, float | None] | None:
        """The method's classifier and its tau; None, and a line on why, where the run lacks something."""
        try:
            return self._make(method)
        except ValueError as error:
            if fatal:
                raise
            print(f"{method} is left out: {error}")
            return None

    def _make(self, method: str) -> tuple[Classifier, float | None]:
        run, args = self.run, self.args
        if method in ("batch", "mbj"):
            if method not in self.trained:
                trained = (
                    "the run has no memory" if method == "mbj" else "the run shared its classifier with the memory"
                )
                raise ValueError(trained)
            return self.trained[method], None
        weight, _ = self._batch()
        if method == "class-mean":
            return formulas.nearest_class_mean(self.training.features, self.training.labels, len(run.counts)), None
        adjust: Callable[[float], Classifier] = partial(formulas.tau_normalized, weight)
        if method == "adjusted":
            adjust = partial(self._adjusted, run.adjusted_already())
        tau = 1.0 if args.tau is None else args.tau
        if self.validation is not None:
            tau = self.best(adjust, self.validation)
        return adjust(tau), tau

    def _batch(self) -> Classifier:
        return self.trained.get("batch") or self.trained["mbj"]

    def _adjusted(self, already: float, tau: float) -> Classifier:
        """z_c - tau log N_c + log T_c: what training adjusted is taken off tau, and T is the target's mix."""
        if np.isnan(already):
            if self.args.tau is None and self.validation is None:
                raise ValueError(
                    f"the classifier was not trained by a loss that leaves the class sizes as they are (--loss "
                    f"{self.run.args.loss}, or a memory that shares it): say how much by --tau"
                )
            already = 0.0
        weight, bias = self._batch()
        shift = (tau - already) * np.log(self.run.counts) - np.log(self.target / self.target.sum())
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        return weight.clone(), (bias.double() - torch.from_numpy(shift)).to(weight.dtype)

    def best(self, adjust: Callable[[float], Classifier], images: Inputs) -> float:
        """The tau of the lowest mean error of the classes, in the target's mix; the smallest of equal ones."""
        means = [self._mean_error(images, adjust(float(strength))) for strength in TAUS]
        return round(float(TAUS[int(np.argmin(means))]), 3)

    def _mean_error(self, images: Inputs, classifier: Classifier) -> float:
        seen, wrong = images.wrong(classifier, len(self.run.counts))
        return float(np.average(wrong[seen > 0] / seen[seen > 0], weights=self.target[seen > 0]))

    def errors(self, classifier: Classifier) -> dict[str, float]:
        """Of the evaluation set in percent; with a target also the mean of the classes in its mix."""
        counts = self.run.counts
        errors = group_errors(*self.evaluation.wrong(classifier, len(counts)), counts)
        if self.args.target_prior:
            errors["target"] = 100 * self._mean_error(self.evaluation, classifier)
        return errors


def table(results: list[Results], style: str = "text") -> str:
    """Errors in percent, a line for each classifier; of several runs mean and standard deviation, and the mean
    difference to the first line with its standard error (below three runs the differences)."""
    columns = COLUMNS | ({"target": "target"} if "target" in next(iter(results[0].values()))[0] else {})
    names = [name for name in METHODS if any(name in each for each in results)]
    errors = {name: [each[name][0] if name in each else None for each in results] for name in names}
    header, rows = ["error, %", "tau", *columns, f"all − {names[0]}"], error_rows(errors, list(columns.values()))
    for row in rows:
        taus = {each[row[0]][1] for each in results if row[0] in each}
        row.insert(1, ", ".join(f"{tau:g}" for tau in sorted(filter(None, taus))))
    if len(results) == 1:
        header, rows = header[:-1], [row[:-1] for row in rows]
    return text_table(rows, header, style)


if __name__ == "__main__":
    main()
