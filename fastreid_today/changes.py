"""The one list of what is changed in a running fast-reid, and the one way of changing it.

A change is a function. ``@replaces`` puts it in the place of a function of fast-reid, which it gets as its first
argument; ``@change`` is for all others. Its docstring says what it does; the decorator, what a user saw without it.
A change whose symptom not every supported version has looks for it first and returns the reason where there is none.
Nothing is written to fast-reid's files. ``python -m fastreid_today.doctor`` prints the list.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


class UpstreamChangedError(RuntimeError):
    """fast-reid is not what a change was written for."""


@dataclass(frozen=True)
class Change:
    """One change: ``apply`` returns None where it was needed, else the reason why not."""

    name: str
    file: str  # of fast-reid, below fastreid/
    what_for: str
    text: str
    by: str  # the module that makes it
    gpu: bool  # whether it matters where there is CUDA
    apply: Callable[[], str | None]


CHANGES: dict[str, Change] = {}
STATUS: dict[str, str] = {}  # name -> "on", "off: why" or "failed: why"


def change(file: str, what_for: str, gpu: bool = True) -> Callable[[Callable], Callable]:
    """Register a function without arguments, which changes ``file``, or returns why it need not."""
    return lambda function: _registered(function, file, what_for, gpu, function)


def replaces(target: str, what_for: str, gpu: bool = True) -> Callable[[Callable], Callable]:
    """Register ``function(stock, *arguments)`` in the place of ``target``, such as "engine.hooks:SWA.before_step"."""
    file = target.partition(":")[0].replace(".", "/") + ".py"
    return lambda function: _registered(function, file, what_for, gpu, lambda: wrap(target, function))


def _registered(function: Callable, file: str, what_for: str, gpu: bool, apply: Callable[[], Any]) -> Callable:
    text, name = " ".join((inspect.getdoc(function) or "").partition("\n\n")[0].split()), function.__name__
    assert name not in CHANGES, name
    CHANGES[name] = Change(name, file, what_for, text, function.__module__, gpu, apply)
    return function


def apply_all(modules: Sequence[str] = ()) -> None:
    """Make every change that has not been made yet: in the order of these modules, then in that of registration.

    A program may import any module of ours first, as a spawned rank does, which registers its changes first.

    Raises:
        UpstreamChangedError: where fast-reid has changed; what came before stays, what comes after is not made.
    """
    order = {f"fastreid_today.{module}": place for place, module in enumerate(modules)}
    for name, entry in sorted(CHANGES.items(), key=lambda item: order.get(item[1].by, len(order))):
        if STATUS.get(name, "failed").startswith("failed"):
            try:
                reason = entry.apply()
            except UpstreamChangedError as error:
                STATUS[name] = f"failed: {error}"
                raise UpstreamChangedError(
                    f"fastreid/{entry.file} has changed under {name}: {error}. Use fastreid 1.4.0 or its main branch; "
                    f"without this change: {entry.what_for}"
                ) from None
            STATUS[name] = f"off: {reason}" if reason else "on"


def wrap(target: str, function: Callable) -> None:
    """Let ``function(stock, *arguments)`` be called in the place of ``target``, wherever fast-reid has imported it.

    ``target`` is "module:attribute", below fastreid, as "engine.launch:launch" or "engine.hooks:SWA.before_step". Where
    it is not there, that is an UpstreamChangedError.
    """
    module, _, path = target.partition(":")
    importlib.import_module(f"fastreid.{module}")
    owner: Any = sys.modules[f"fastreid.{module}"]  # `fastreid.engine.launch` as an attribute is a function
    *owners, name = path.split(".")
    try:
        for part in owners:
            owner = getattr(owner, part)
        stock = getattr(owner, name)
    except AttributeError:
        raise UpstreamChangedError(f"there is no {path}") from None

    @functools.wraps(stock)
    def call(*arguments: Any, **options: Any) -> Any:
        return function(stock, *arguments, **options)

    setattr(owner, name, call)
    rebind(stock, call)


def rebind(old: object, new: object) -> None:
    """Replace ``old`` by ``new`` in every fast-reid module that imported it by name."""
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] == "fastreid":
            for attribute in [key for key, value in vars(module).items() if value is old]:
                setattr(module, attribute, new)
