"""The examples in the docstrings of what users call are true."""

import doctest
import importlib

import pytest

CORE = ["functional", "memory", "losses", "sampling", "checks", "longtail"]


@pytest.mark.parametrize("name", [*CORE, "timm.criterion", "timm.head"])
def test_examples(name):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    failed, attempted = doctest.testmod(importlib.import_module(f"mbj_plugin.{name}"))
    assert attempted and not failed
