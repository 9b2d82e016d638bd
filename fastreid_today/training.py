"""What keeps fast-reid from being imported and from training on today's Python, torch, NumPy and torchvision."""

from __future__ import annotations

import collections
import collections.abc
import functools
import importlib
import importlib.util
import sys
import types

from fastreid_today.changes import change, replaces


@change(
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


@change("data/build.py, evaluation/testing.py", "`cannot import name 'Mapping' from 'collections'`, Python >= 3.10")
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


@replaces(
    "solver.build:build_optimizer",
    "no weight changes in fp32 on torch >= 2.0: zero_grad() drops the flat gradient that step() reads",
)
def flat_gradients(build, cfg, model, contiguous=True):
    """Optimizers over ContiguousParams get `zero_grad(set_to_none=False)`."""
    optimizer, params = build(cfg, model, contiguous)
    if contiguous:
        optimizer.zero_grad = functools.partial(optimizer.zero_grad, set_to_none=False)
    return optimizer, params


@replaces("utils.params:ContiguousParams.buffer_is_valid", "the check of the flat buffer passes on cut gradients")
def flat_gradients_checked(valid, self):
    """It looks at the gradients themselves too."""
    flat = zip(self._param_buffer, self._grad_buffer, strict=True)
    return valid(self) and all(p.grad is not None and p.grad.data_ptr() == g.data_ptr() for p, g in flat)


@replaces("solver.optim.swa:SWA.zero_grad", "hooks.SWA: its optimizer cuts the flat gradients again")
def swa_gradients(_, self, set_to_none=False):
    """It calls that of the optimizer inside."""
    self.optimizer.zero_grad()


def lend(module: types.ModuleType, **names: object) -> types.SimpleNamespace:
    """A module with some names added or replaced, for one importer only."""
    return types.SimpleNamespace(**{**vars(module), **names})


@change("data/transforms/build.py", "INPUT.AFFINE: `unexpected keyword argument 'resample'`, torchvision >= 0.15")
def random_affine() -> str | None:
    """Its RandomAffine takes the old keywords `resample` and `fillcolor` and hands them on as today's."""
    from fastreid.data.transforms import build as transforms_build

    transforms = transforms_build.T

    def affine(degrees, translate=None, scale=None, shear=None, resample=False, fillcolor=0):
        mode = transforms.InterpolationMode.BILINEAR if resample else transforms.InterpolationMode.NEAREST
        return transforms.RandomAffine(degrees, translate, scale, shear, interpolation=mode, fill=fillcolor)

    transforms_build.T = lend(transforms, RandomAffine=affine)
    return None
