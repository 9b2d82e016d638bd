"""What `make docs` builds: the navigation leads to pages, and the API reference names what there is."""

import importlib
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
HOSTS = {"timm": "timm", "fastreid": "fastreid"}


def files(node):
    """All files below a node of the navigation."""
    if isinstance(node, str):
        return [node]
    return [file for child in (node.values() if isinstance(node, dict) else node) for file in files(child)]


def test_the_navigation_leads_to_pages():
    nav = files(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert len(set(nav)) == len(nav) > 10
    assert [file for file in nav if not (ROOT / "docs" / file).is_file()] == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs/api").glob("*.md")), ids=lambda page: page.stem)
def test_the_reference_names_what_there_is(page):
    if page.stem in HOSTS:
        pytest.importorskip(HOSTS[page.stem])
        importlib.import_module(f"mbj_plugin.{page.stem}")
    blocks = re.findall(r"^::: (\S+)\n(?:    options:\n      members: \[(.*)\])?", page.read_text(), re.MULTILINE)
    assert blocks
    for module, members in blocks:
        for member in filter(None, members.split(", ")):
            assert getattr(importlib.import_module(module), member).__doc__, f"{module}.{member}"
