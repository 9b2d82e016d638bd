"""What a release says of itself agrees, and its package page has no link that leads nowhere."""

import importlib.util
import re
from pathlib import Path

import setuptools
import yaml

import mbj_plugin

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("setup_script", ROOT / "setup.py")
setup_script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(setup_script)


def test_version_and_date_are_the_same_everywhere():
    version, date = re.search(r"^## (\S+) \((\d{4}-\d\d-\d\d)\)$", (ROOT / "CHANGELOG.md").read_text(), re.M).groups()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert version == citation["version"] == mbj_plugin.__version__ == setup_script.version()
    assert date == str(citation["date-released"])


def targets(page):
    return re.findall(r"\]\(([^)]+)\)", page)


def test_without_a_repository_the_package_page_has_no_relative_link():
    page = setup_script.package_page((ROOT / "README.md").read_text(), None, "1.2.3")
    assert targets(page) and all(target.startswith("https://") for target in targets(page))
    assert "pip install '.[" not in page and "pip install 'mbj_plugin[timm]'" in page


def test_with_a_repository_links_and_pictures_lead_there():
    readme = "[a](docs/a.md#b) ![c](docs/c.png) [d](#e) [f](https://g)"
    assert targets(setup_script.package_page(readme, "https://h/i", "1.2.3")) == [
        "https://h/i/blob/v1.2.3/docs/a.md#b",
        "https://h/i/raw/v1.2.3/docs/c.png",
        "https://h/i#e",
        "https://g",
    ]


def test_the_commands_of_the_package_page_are_installed_ones():
    replaced = [name for name in setup_script.COMMANDS.values() if name.startswith("mbj-")]
    scripts = setuptools.config.setupcfg.read_configuration(ROOT / "setup.cfg")["options"]["entry_points"]
    assert {*replaced} <= {line.split(" = ")[0] for line in scripts["console_scripts"]}
