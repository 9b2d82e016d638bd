"""What fast-reid 1.4.0 and its main branch need to run on today's Python, torch, NumPy and torchvision.

Nothing but this file and compat_*.py beside it patches fast-reid for this. One function, one patch: its docstring is
the fix, its decorator names the upstream file and the symptom. A patch whose symptom not every supported version has
looks for it first, and where there is none it returns the reason and leaves fast-reid alone. Every patch runs once per
process. Nothing is written to fast-reid's files. `python -m fastreid_today.doctor` lists what came out.
"""

from __future__ import annotations

import collections
import collections.abc
import functools
import importlib.util
import inspect
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


class UpstreamChangedError(RuntimeError):
    """fast-reid has changed under a patch: the symptom is there, but not the code that the patch knows."""


@dataclass(frozen=True)
class Patch:
    """One patch: ``apply`` returns None where it was needed, else the reason why not."""

    name: str
    upstream: str
    symptom: str
    fix: str
    apply: Callable[[], str | None]


PATCHES: dict[str, Patch] = {}
STATUS: dict[str, str] = {}  # name -> "on", "off: why" or "failed: why"


def patch(upstream: str, symptom: str) -> Callable[[Callable[[], str | None]], Callable[[], str | None]]:
    """Register a function as a patch of ``upstream`` (a file under fastreid/) against ``symptom``."""

    def register(function: Callable[[], str | None]) -> Callable[[], str | None]:
        fix = " ".join((inspect.getdoc(function) or "").split())
        PATCHES[function.__name__] = Patch(function.__name__, upstream, symptom, fix, function)
        return function

    return register


def apply_all() -> None:
    """Apply every patch that has not run yet, in the order of their registration."""
    for name, entry in PATCHES.items():
        if STATUS.get(name, "failed").startswith("failed"):
            try:
                reason = entry.apply()
            except UpstreamChangedError as error:
                STATUS[name] = f"failed: {error}"  # for the doctor; any other import of the plugin ends here
                raise
            STATUS[name] = f"off: {reason}" if reason else "on"


def expect(condition: bool, name: str, found: str) -> None:
    """Raise where upstream is not what patch ``name`` was written for."""
    if not condition:
        entry = PATCHES[name]
        raise UpstreamChangedError(
            f"fastreid/{entry.upstream} has changed under the patch {name}: {found}. Use fastreid 1.4.0 or its main "
            f"branch, or report this; the symptom would be: {entry.symptom}"
        )


def rebind(old: object, new: object) -> None:
    """Replace ``old`` by ``new`` in every fast-reid module that imported it by name."""
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] == "fastreid":
            for attribute in [key for key, value in vars(module).items() if value is old]:
                setattr(module, attribute, new)


@patch(
    "data/build.py", "`No module named 'torch._six'` on import (the wheel; FastFace's utils_amp.py too), torch >= 2.0"
)
def torch_six() -> str | None:
    """A stand-in module `torch._six` with the names that torch 1.x had there. It stays: projects import it later."""
    if "torch._six" in sys.modules or importlib.util.find_spec("torch._six") is not None:
        return "torch has torch._six"
    stand_in = types.ModuleType("torch._six")
    vars(stand_in).update(
        string_classes=(str, bytes), int_classes=int, container_abcs=collections.abc, inf=float("inf")
    )
    sys.modules["torch._six"] = stand_in
    return None


@patch("data/build.py, evaluation/testing.py", "`cannot import name 'Mapping' from 'collections'`, Python >= 3.10")
def collections_mapping() -> str | None:
    """The name is lent to `collections` while these two files are imported, and taken away again."""
    try:
        _import_both()
    except ImportError as error:
        if "'Mapping'" not in str(error):
            raise
    else:
        return "fastreid.data and fastreid.evaluation import"
    collections.Mapping = collections.abc.Mapping  # type: ignore[attr-defined]
    try:
        _import_both()
    finally:
        del collections.Mapping  # type: ignore[attr-defined]
    return None


def _import_both() -> None:
    importlib.import_module("fastreid.data")
    importlib.import_module("fastreid.evaluation")


@patch(
    "solver/build.py, utils/params.py",
    "nothing trains in fp32 on torch >= 2.0, without a word: zero_grad() drops the flat gradient that step() reads",
)
def flat_gradients() -> str | None:
    """Optimizers over ContiguousParams get `zero_grad(set_to_none=False)`, and the buffer check, which kept passing on
    cut gradients, also looks at the flat ones."""
    from fastreid.solver import build as solver_build
    from fastreid.utils.params import ContiguousParams

    build = solver_build.build_optimizer
    expect("contiguous" in inspect.signature(build).parameters, "flat_gradients", "build_optimizer(contiguous) is gone")
    expect(hasattr(ContiguousParams, "buffer_is_valid"), "flat_gradients", "buffer_is_valid is gone")

    @functools.wraps(build)
    def build_optimizer(cfg, model, contiguous=True):
        optimizer, params = build(cfg, model, contiguous)
        if contiguous:
            optimizer.zero_grad = functools.partial(optimizer.zero_grad, set_to_none=False)
        return optimizer, params

    views_are_valid = ContiguousParams.buffer_is_valid

    @functools.wraps(views_are_valid)
    def buffer_is_valid(self):
        flat = zip(self._param_buffer, self._grad_buffer, strict=True)
        return views_are_valid(self) and all(p.grad is not None and p.grad.data_ptr() == g.data_ptr() for p, g in flat)

    rebind(build, build_optimizer)
    ContiguousParams.buffer_is_valid = buffer_is_valid
    return None


class _Namespace(types.ModuleType):
    """A module with some names replaced, for one importer only."""

    def __init__(self, module: types.ModuleType, **replaced: object) -> None:
        super().__init__(module.__name__)
        self.__dict__.update(replaced, _module=module)

    def __getattr__(self, name: str) -> object:
        return getattr(self._module, name)


@patch("data/transforms/build.py", "INPUT.AFFINE: `unexpected keyword argument 'resample'`, torchvision >= 0.15")
def random_affine() -> str | None:
    """Its RandomAffine takes the old keywords `resample` and `fillcolor` and hands them on as today's."""
    from fastreid.data.transforms import build as transforms_build

    transforms = transforms_build.T
    expect("fillcolor=0" in inspect.getsource(transforms_build), "random_affine", "RandomAffine's arguments differ")

    def affine(degrees, translate=None, scale=None, shear=None, resample=False, fillcolor=0):
        mode = transforms.InterpolationMode.BILINEAR if resample else transforms.InterpolationMode.NEAREST
        return transforms.RandomAffine(degrees, translate, scale, shear, interpolation=mode, fill=fillcolor)

    transforms_build.T = _Namespace(transforms, RandomAffine=affine)
    return None


@patch("evaluation/rank.py", "the CUHK03 metric: `module 'numpy' has no attribute 'bool'`, NumPy 1.24 to 1.26")
def numpy_bool() -> str | None:
    """Its `np` gets `np.bool` back; NumPy itself stays as it is."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if hasattr(np, "bool"):
            return f"NumPy {np.__version__} has np.bool"
        from fastreid.evaluation import rank
    expect(getattr(rank, "np", None) is np, "numpy_bool", "rank.py imports NumPy under another name")
    rank.np = _Namespace(np, bool=bool)
    return None


@patch(
    "evaluation/rank_cylib", "the first evaluation writes into fast-reid's folder, and without Cython ends the process"
)
def fast_evaluation() -> str | None:
    """The Cython evaluation is built in the user's cache folder and loaded from there; where it cannot be built, a
    warning says why and the Python evaluation runs."""
    from fastreid.evaluation import reid_evaluation

    from fastreid_today import fast_eval

    if fast_eval.built_upstream():
        return "built in fast-reid's own folder"
    expect(hasattr(reid_evaluation, "compile_helper"), "fast_evaluation", "compile_helper is gone")
    fast_eval.load()
    reid_evaluation.compile_helper = fast_eval.build_and_load
    return None


@patch("data/common.py", "an empty training set: a bare AssertionError, or no end under NaiveIdentitySampler")
def empty_training_set() -> str | None:
    """A training set without images is a ValueError that says where the images were looked for."""
    from fastreid.data.common import CommDataset

    init = CommDataset.__init__
    expect("relabel" in inspect.signature(init).parameters, "empty_training_set", "CommDataset(relabel) is gone")

    @functools.wraps(init)
    def checked(self, img_items, transform=None, relabel=True):
        if relabel and not len(img_items):
            raise ValueError(
                "the training set has no images: check DATASETS.NAMES, and that the environment variable "
                "FASTREID_DATASETS names the folder that holds the data sets (default: ./datasets)"
            )
        init(self, img_items, transform, relabel)

    CommDataset.__init__ = checked
    return None
