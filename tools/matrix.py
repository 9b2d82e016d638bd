"""One row of docs/maintainers/matrix.md: what ran, its versions and how it ended.

tox calls it after an environment's tests."""

import argparse
import importlib.metadata
import platform
import xml.etree.ElementTree as ET
from datetime import date
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "maintainers" / "matrix.md"
PACKAGES = ("torch", "torchvision", "timm", "fastreid", "numpy")


def version(package: str) -> str:
    """The version of an installed package, without its build; "-" where there is none."""
    try:
        return importlib.metadata.version(package).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return "-"


def result(junit: Path) -> tuple[str, str]:
    """What ran, as folders of tests/, and how it ended, from the XML that pytest writes."""
    if not junit.is_file():
        return "-", "pytest did not end"
    suite = ET.parse(junit).getroot().find("testsuite")
    assert suite is not None  # pytest writes one
    folders = {folder(case.get("classname", "")) for case in suite.iter("testcase")}
    counts = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    wrong = counts["failures"] + counts["errors"]
    ended = f"{counts['tests'] - wrong - counts['skipped']} passed, {wrong} failed, {counts['skipped']} skipped"
    return ", ".join(sorted(folders)), f"{ended}, {float(suite.get('time', 0)):.0f} s"


def folder(classname: str) -> str:
    """`tests.timm.trainer.test_args` is a test of timm, `tests.test_memory` of the core, with a class or without."""
    name = classname.split(".")[1]
    return "core" if name.startswith("test_") else name


def put(page: str, name: str, row: str) -> str:
    """The page with the row of environment ``name`` replaced, or added under its table, which ends the page."""
    lines = page.rstrip("\n").split("\n")
    for number, line in enumerate(lines):
        if line.startswith(f"| {name} |"):
            lines[number] = row
            return "\n".join(lines) + "\n"
    return "\n".join([*lines, row]) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Read the result, write the row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="the environment's")
    parser.add_argument("junit", type=Path, help="what `pytest --junit-xml` wrote")
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args(argv)
    folders, ended = result(args.junit)
    versions = [platform.python_version(), *map(version, PACKAGES)]
    row = f"| {' | '.join([args.name, *versions, folders, ended, str(date.today())])} |"
    args.page.write_text(put(args.page.read_text(encoding="utf-8"), args.name, row), encoding="utf-8")
    print(row)


if __name__ == "__main__":
    main()
