"""What a release says of itself agrees, and its package page has no link that leads nowhere."""

import re
from pathlib import Path

import yaml

import mbj_plugin

ROOT = Path(__file__).parents[1]


def test_version_and_date_are_the_same_everywhere():
    version, date = re.search(r"^## (\S+) \((\d{4}-\d\d-\d\d)\)$", (ROOT / "CHANGELOG.md").read_text(), re.M).groups()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert version == citation["version"] == mbj_plugin.__version__
    assert date == str(citation["date-released"])
