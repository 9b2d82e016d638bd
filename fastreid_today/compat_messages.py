"""The patches of compat.py for messages: what is missing or misspelt is said, with what to do about it."""

from __future__ import annotations

import difflib
import functools
import inspect
import os
from collections.abc import Iterable

import torch

from fastreid_today.compat import expect, patch, rebind


@patch("data/datasets", 'a data set that is missing: `"..." is not found`, and not where it was looked for')
def missing_files() -> str | None:
    """The error, a FileNotFoundError, names the environment variable FASTREID_DATASETS."""
    from fastreid.data.datasets.bases import Dataset
    from fastreid.data.datasets.msmt17 import MSMT17
    from fastreid.data.datasets.wildtracker import WildTrackCrop

    expect(hasattr(Dataset, "check_before_run"), "missing_files", "check_before_run is gone")

    def check_before_run(self, required_files):
        for path in [required_files] if isinstance(required_files, str) else required_files:
            if not os.path.exists(path):
                raise _Missing(path, type(self))

    def tell(init):
        @functools.wraps(init)
        def init_or_tell(self, root="datasets", **options):
            try:
                init(self, root, **options)
            except (AssertionError, FileNotFoundError) as error:
                if isinstance(error, _Missing):
                    raise
                raise _Missing(getattr(error, "filename", None) or root, type(self)) from error

        return init_or_tell

    Dataset.check_before_run = check_before_run
    for kind in (MSMT17, WildTrackCrop):  # they look in ways of their own
        kind.__init__ = tell(kind.__init__)
    return None


class _Missing(FileNotFoundError):
    def __init__(self, path: str, kind: type) -> None:
        name = getattr(kind, "dataset_name", None) or getattr(kind, "dataset_dir", None) or kind.__name__
        super().__init__(
            f"{path} is not there, or not as {kind.__name__} needs it, which is made from the files of {name}. Put "
            "them into the folder that the environment variable FASTREID_DATASETS names (default: ./datasets)"
        )


@patch("utils/registry.py", "a misspelt name: `No object named ... found in ... registry!`, and no list of the names")
def unknown_names() -> str | None:
    """The error, a KeyError, gives the names that are close, or all of them."""
    from fastreid.utils.registry import Registry

    get = Registry.get
    expect("_obj_map" in get.__code__.co_names, "unknown_names", "Registry._obj_map is gone")

    @functools.wraps(get)
    def get_or_tell(self, name):
        if name not in self._obj_map:
            names = _near(str(name), self._obj_map, f"there are {', '.join(sorted(self._obj_map))}")
            raise UnknownNameError(f"there is no {name!r} in fast-reid's registry {self._name}: {names}")
        return get(self, name)

    Registry.get = get_or_tell
    return None


def _near(name: str, known: Iterable[str], otherwise: str) -> str:
    """The names that are close; where none is, ``otherwise``."""
    close = difflib.get_close_matches(name, list(known))
    return f"did you mean {' or '.join(close)}?" if close else otherwise


class UnknownNameError(KeyError):
    """A KeyError that prints as its text, not as the text in quotes."""

    def __str__(self) -> str:
        return self.args[0]


@patch("solver/build.py", "a misspelt SOLVER.OPT or SOLVER.SCHED: `module 'torch.optim' has no attribute ...`")
def unknown_solvers() -> str | None:
    """The error, a ValueError, gives the names that are close, or those that fast-reid has."""
    from fastreid.solver import build

    make_optimizer, make_schedule = build.build_optimizer, build.build_lr_scheduler
    code = inspect.getsource(build)
    expect("getattr(torch.optim," in code and '"CosineAnnealingLR": {' in code, "unknown_solvers", "names changed")

    @functools.wraps(make_optimizer)
    def build_optimizer(cfg, *arguments, **options):
        optimizers = [name for name, kind in vars(torch.optim).items() if inspect.isclass(kind)]
        _check_solver("OPT", cfg.SOLVER.OPT, optimizers)
        return make_optimizer(cfg, *arguments, **options)

    @functools.wraps(make_schedule)
    def build_lr_scheduler(cfg, *arguments, **options):
        _check_solver("SCHED", cfg.SOLVER.SCHED, ["MultiStepLR", "CosineAnnealingLR"])
        return make_schedule(cfg, *arguments, **options)

    rebind(make_optimizer, build_optimizer)
    rebind(make_schedule, build_lr_scheduler)
    return None


def _check_solver(key: str, name: str, known: list[str]) -> None:
    if name not in known:
        said = _near(name, known, f"it takes {', '.join(known)}")
        raise ValueError(f"SOLVER.{key} is {name!r}, which fast-reid does not know: {said}")


@patch("evaluation/rank.py", "a test set of one camera: `Error: all query identities do not appear in gallery`")
def no_matches() -> str | None:
    """The error, a ValueError, says that images of a query's own camera do not count."""
    from fastreid.evaluation import rank

    evaluate = rank.evaluate_rank
    expect("q_camids" in evaluate.__code__.co_varnames, "no_matches", "evaluate_rank(q_camids) is gone")

    @functools.wraps(evaluate)
    def evaluate_rank(*arguments, **options):
        try:
            return evaluate(*arguments, **options)
        except AssertionError as error:
            if "do not appear in gallery" not in str(error):
                raise
        raise ValueError(no_match("the test set", "one or more"))

    rebind(evaluate, evaluate_rank)
    return None


def no_match(name: str, cameras: str) -> str:
    """What is wrong with a test set without a single match."""
    return (
        f"{name} cannot be evaluated: no query has an image of its identity from another camera in the gallery "
        f"({cameras} in all), and those of its own camera do not count. Give the images the cameras that took them, or "
        "set DATASETS.TESTS to another set"
    )
