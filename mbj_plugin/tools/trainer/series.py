"""The runs that a command asks for, one or a series of them, and the one table that they end in."""

from __future__ import annotations

import json
import logging
import os
from argparse import Namespace
from collections.abc import Callable
from typing import Any

from mbj_plugin.tools.trainer.build import init_device
from mbj_plugin.tools.trainer.error_table import error_table
from mbj_plugin.tools.trainer.resume import check_settings
from mbj_plugin.tools.trainer.run_folder import experiment, folder_of

_logger = logging.getLogger("mbj_plugin")
Results = dict[str, Any]
LOSS_NAMES = {"ce": "cross-entropy", "focal": "focal loss", "balanced_softmax": "balanced softmax"}
# They look at all parameters together, or draw random numbers for each: a second classifier changes the features.
COUPLING = ("lamb", "kron", "adahessian")


def other_features(args: Namespace) -> str | None:
    """Why a run with MBJ does not contain its baseline; None where its batch classifier is exactly the baseline's."""
    if args.mbj_memory != "feature":
        return f"--mbj-memory {args.mbj_memory}: prototypes train the features"
    if args.mbj_classifier == "shared":
        return "--mbj-classifier shared: the features feel the memory"
    if any(name in args.opt.lower() for name in COUPLING):
        return f"--opt {args.opt} couples all parameters"
    if args.amp and args.amp_dtype == "float16" and args.device.startswith("cuda"):
        return "--amp with float16: a step that overflows in either classifier is skipped for both"
    return None


def train_all(args: Namespace, train: Callable[[Namespace, str], Results]) -> dict[str, list[Results]]:
    """Train what the arguments ask for: with ``--seeds N`` N runs, with ``--compare`` the baseline beside MBJ where no
    run with MBJ contains it.

    Runs that are compared have the same seed and the same images. With several seeds both seeds count up from
    ``--seed`` and ``--subset-seed``, so the spread holds the draw of the images too. A series that was stopped goes on
    with the same command: finished runs are read, the open one is resumed.

    Returns:
        "baseline" and "mbj" (those that were trained) to the content of results.json for each seed.
    """
    if args.resume and (args.compare or args.seeds > 1):
        raise ValueError(
            "--resume goes on with one run: leave it out, and the same command with --compare or --seeds goes on with "
            "its series"
        )
    init_device(args)  # once: the runs share the process group
    methods = {"mbj": True} if args.mbj or args.compare else {"baseline": False}
    if args.compare:
        why = other_features(args)
        _logger.info(
            f"--compare trains the baseline too, in a run of its own ({why})."
            if why
            else "The batch classifier of a run with MBJ is exactly the baseline: --compare needs no second run."
        )
        methods |= {"baseline": False} if why else {}
    several = len(methods) * args.seeds > 1
    name = args.experiment if args.resume else experiment(args)
    runs: list[tuple[str, Namespace, Results | None]] = []
    for i in range(args.seeds):
        for method, use_mbj in methods.items():  # MBJ first: it refuses more models and losses
            parts = [name] + [method] * (len(methods) > 1) + [f"seed{args.seed + i}"] * (args.seeds > 1)
            changes = {"mbj": use_mbj, "experiment": os.path.join(*parts)}
            changes |= {"seed": args.seed + i, "subset_seed": args.subset_seed + i}
            each = Namespace(**{**vars(args), **changes})
            done = _finished(each) if several else None
            if several and not done and (folder_of(each) / "last.pth.tar").is_file():
                each.resume = str(folder_of(each) / "last.pth.tar")
            runs.append((method, each, done))
    results: dict[str, list[Results]] = {method: [] for method in methods}
    for number, (method, each, done) in enumerate(runs, 1):
        title = f"run {number}/{len(runs)} ({method}, seed {each.seed})" if len(runs) > 1 else ""
        results[method].append(done or train(each, title))
    return dict(sorted(results.items()))


def _finished(args: Namespace) -> Results | None:
    """What is in results.json of a run that an earlier command has finished."""
    path = folder_of(args) / "results.json"
    if not path.is_file():
        return None
    results = json.loads(path.read_text())
    saved = results["settings"]
    made = {name: saved[name] for name in ("num_classes", "lr", "lr_base_scale") if not getattr(args, name)}
    check_settings(saved, Namespace(**{**vars(args), **made}), str(path))
    if results["settings"]["epochs"] != args.epochs:
        raise ValueError(f"{path.parent} has trained {results['settings']['epochs']} epochs: set --epochs as they were")
    return results


def table(results: dict[str, list[Results]], style: str) -> str:
    """One line for each classifier of the runs: the baseline, its logit adjustment, MBJ."""
    first = next(iter(results.values()))[0]
    rows: dict[str, list[dict[str, float]]] = {}
    for method, keys in (("baseline", ("batch", "batch_adjusted")), ("mbj", ("memory",))):
        runs = results.get(method) or next(iter(results.values()))
        for key in keys:
            for averaged, part in (("", "classifiers"), (", not averaged", "not_averaged")):
                if key in runs[0].get(part, {}):
                    rows[row_name(key, runs[0]) + averaged] = [run[part][key]["errors"] for run in runs]
    one = {"batch", "memory"} <= first["classifiers"].keys()
    note = (
        " All lines come from one training: the first is its batch classifier, which a run without MBJ would give too."
    )
    return error_table(rows, style, first["headline"], note if one and "baseline" not in results else "")


def row_name(key: str, results: Results) -> str:
    """What to call a classifier of a run: its loss, what was done to it, or MBJ."""
    settings = results["settings"]
    loss = LOSS_NAMES.get(settings["loss"], settings["loss"].rpartition(":")[2])
    loss = "binary cross-entropy" if settings["bce_loss"] else loss
    return {"memory": "MBJ", "batch": loss, "batch_adjusted": f"{loss}, logit adjustment"}[key]
