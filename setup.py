"""Makes the package page of README.md; everything else is in setup.cfg.

README is written for a clone. On a package page there is no clone, so its links to files lead to the repository of
setup.cfg's `Source`, or are plain text while there is none, and its commands are those of an installed package.
"""

import configparser
import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
COMMANDS = {
    "pip install .`": "pip install mbj_plugin`",
    "pip install '.[": "pip install 'mbj_plugin[",
    "python tools/train_timm.py": "mbj-train-timm",
    "python tools/after_training.py": "mbj-after-training",
    "`tools/after_training.py`": "`mbj-after-training`",
    "python tools/train_fastreid.py": "mbj-train-fastreid",
    "python tools/demo_fastreid.py": "python -m mbj_plugin.tools.fastreid.demo",
    "python tools/report.py": "mbj-report",
}


def source() -> str | None:
    """The address of the repository, None while setup.cfg names none."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    urls = dict(line.split(" = ", 1) for line in config["metadata"]["project_urls"].strip().splitlines())
    return urls.get("Source")


def package_page(readme: str, repository: str | None, version: str) -> str:
    """README without a link or picture that leads nowhere on a package page."""

    def absolute(match: re.Match) -> str:
        picture, text, target = match.groups()
        if target.startswith(("http:", "https:")):
            return match[0]
        if repository is None:
            return f"({text}: {target} in the source distribution)" if picture else text
        if target.startswith("#"):
            return f"[{text}]({repository}{target})"
        return f"{picture}[{text}]({repository}/{'raw' if picture else 'blob'}/v{version}/{target})"

    for here, installed in COMMANDS.items():
        readme = readme.replace(here, installed)
    return re.sub(r"(!?)\[([^]]+)\]\(([^)]+)\)", absolute, readme)


def version() -> str:
    """The one place that has it, read without importing torch."""
    text = (ROOT / "mbj_plugin" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)[1]


if __name__ == "__main__":
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    setup(long_description=package_page(readme, source(), version()), long_description_content_type="text/markdown")
