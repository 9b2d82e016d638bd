"""Finds fast-reid, also a copy inside another package (``fast_reid.fastreid`` in many trackers), and loads it once.

The first fast-reid that a program imports, under whatever name, is *the* fast-reid: ``fastreid`` and the other name are
then the same modules, so that every change, registry and config key is there under both.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

logger = logging.getLogger("fastreid.today")
LAYOUT = Path("engine", "defaults.py")  # a folder `fastreid` that holds this file is a fast-reid


class Finder(MetaPathFinder, Loader):
    """Stands in front of Python's own finders; ``loaded`` is called as soon as fast-reid has been imported."""

    def __init__(self, loaded: Callable[[], None]) -> None:
        self.loaded = loaded
        self.package = "fastreid"  # the name under which the program carries its fast-reid
        self.copy: ModuleSpec | None = None  # where that one is, if it is a copy
        self.refused: set[str] = set()

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None):
        """Python asks for every module that it has not loaded yet."""
        if name == "fastreid":
            return self._watched(self._own() or self._others(name, path))
        if self.copy and (name + ".").startswith(self.package + "."):
            return importlib.util.spec_from_loader(name, self)
        if not name.endswith(".fastreid"):
            return None
        spec = self._others(name, path)
        if spec is None or not spec.origin or not (Path(spec.origin).parent / LAYOUT).is_file():
            return None
        if "fastreid" in sys.modules:
            if name not in self.refused:
                self.refused.add(name)
                logger.warning(
                    "%s is a second fast-reid, which stays as it is (on torch >= 2.0 it trains nothing in fp32), since "
                    "%s was imported before it: start the script by `python -m fastreid_today.launch`",
                    *(name, sys.modules["fastreid"].__file__),
                )
            return None
        self.package, self.copy = name, spec
        if multiprocessing.current_process().name == "MainProcess":  # once, and not from each spawned rank
            logger.warning("fast-reid is the copy %s in %s", name, Path(spec.origin).parent)
        return importlib.util.spec_from_loader(name, self)

    def _others(self, name: str, path: Sequence[str] | None) -> ModuleSpec | None:
        found = (finder.find_spec(name, path, None) for finder in sys.meta_path if finder is not self)
        return next((spec for spec in found if spec is not None), None)

    def _own(self) -> ModuleSpec | None:
        if self.copy is None:
            return None
        assert self.copy.origin
        folders = list(self.copy.submodule_search_locations or [])
        return importlib.util.spec_from_file_location("fastreid", self.copy.origin, submodule_search_locations=folders)

    def _watched(self, spec: ModuleSpec | None) -> ModuleSpec | None:
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                self.loaded()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    # As the loader of a copy's modules:

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module of ``fastreid`` that a name below the copy's package stands for."""
        module = importlib.import_module("fastreid" + spec.name.removeprefix(self.package))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It has run; Python has only put the other name's spec into it."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state
