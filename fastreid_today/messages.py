"""What is missing or misspelt is said, with what to do about it."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable

from fastreid_today.changes import change, replaces, wrap


@replaces(
    "data.datasets.bases:Dataset.check_before_run",
    'a data set that is missing: `"..." is not found`, and not where it was looked for',
)
def missing_files(_, self, required_files):
    """The error, a FileNotFoundError, names the environment variable FASTREID_DATASETS."""
    for path in [required_files] if isinstance(required_files, str) else required_files:
        if not os.path.exists(path):
            raise MissingError(path, type(self))


@change("data/datasets/msmt17.py, wildtracker.py", "the same, of two data sets that look in ways of their own")
def missing_files_elsewhere() -> str | None:
    """The same error."""

    def init_or_tell(init, self, root="datasets", **options):
        try:
            init(self, root, **options)
        except (AssertionError, FileNotFoundError) as error:
            if isinstance(error, MissingError):
                raise
            raise MissingError(getattr(error, "filename", None) or root, type(self)) from error

    wrap("data.datasets.msmt17:MSMT17.__init__", init_or_tell)
    wrap("data.datasets.wildtracker:WildTrackCrop.__init__", init_or_tell)
    return None


class MissingError(FileNotFoundError):
    def __init__(self, path: str, kind: type) -> None:
        name = getattr(kind, "dataset_name", None) or getattr(kind, "dataset_dir", None) or kind.__name__
        super().__init__(
            f"{path} is not there, or not as {kind.__name__} needs it, which is made from the files of {name}. Put "
            "them into the folder that the environment variable FASTREID_DATASETS names (default: ./datasets)"
        )


@replaces("data.common:CommDataset.__init__", "an empty training set: a bare AssertionError, or no end under a sampler")
def empty_training_set(init, self, img_items, transform=None, relabel=True):
    """A training set without images is a ValueError that says where the images were looked for."""
    if relabel and not len(img_items):
        raise ValueError(
            "the training set has no images: check DATASETS.NAMES, and that the environment variable "
            "FASTREID_DATASETS names the folder that holds the data sets (default: ./datasets)"
        )
    init(self, img_items, transform, relabel)


@replaces(
    "utils.registry:Registry.get", "a misspelt name: `No object named ... found in ... registry!`, and no list of names"
)
def unknown_names(get, self, name):
    """The error, a KeyError, gives the names that are close, or all of them."""
    if name not in self._obj_map:
        names = near(name, self._obj_map) or f": there are {', '.join(sorted(self._obj_map))}"
        raise UnknownNameError(f"there is no {name!r} in fast-reid's registry {self._name}{names}")
    return get(self, name)


def near(name: object, known: Iterable[str]) -> str:
    """The end of a message on a name that is not known; empty where none of ``known`` is near."""
    close = difflib.get_close_matches(str(name), list(known), 1)
    return f", did you mean {close[0]}?" if close else ""


class UnknownNameError(KeyError):
    """A KeyError that prints as its text, not as the text in quotes."""

    def __str__(self) -> str:
        return self.args[0]


@replaces("evaluation.rank:evaluate_rank", "a test set of one camera: `all query identities do not appear in gallery`")
def no_matches(evaluate, *arguments, **options):
    """The error, a ValueError, says that images of a query's own camera do not count."""
    try:
        return evaluate(*arguments, **options)
    except AssertionError as error:
        if "do not appear in gallery" not in str(error):
            raise
    raise ValueError(no_match("the test set", "one or more"))


def no_match(name: str, cameras: str) -> str:
    """What is wrong with a test set without a single match."""
    return (
        f"{name} cannot be evaluated: no query has an image of its identity from another camera in the gallery "
        f"({cameras} in all), and those of its own camera do not count. Give the images the cameras that took them, or "
        "set DATASETS.TESTS to another set"
    )
