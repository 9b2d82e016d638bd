"""The tables that pages take from the code are those of the code."""

import importlib.util
import re
from pathlib import Path

import pytest

from mbj_plugin.settings import RULES

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("write_pages", ROOT / "tools" / "write_pages.py")
write_pages = importlib.util.module_from_spec(spec)
spec.loader.exec_module(write_pages)


@pytest.mark.parametrize("name", write_pages.TABLES)
def test_a_generated_table_is_that_of_the_code(name):
    if name == "repairs":
        pytest.importorskip("fastreid")
    file, table = write_pages.TABLES[name]
    page = (ROOT / file).read_text()
    assert write_pages.filled(page, name, table()) == page, "python tools/write_pages.py"


def test_the_figure_of_the_digits_is_that_of_their_rows(tmp_path):
    write_pages.digits.draw(tmp_path / "digits.svg", ROOT / write_pages.digits.ROWS)
    kept, drawn = (re.findall(r"<text [^>]*>([^<]*)<", path.read_text()) for path in
                   (ROOT / write_pages.digits.FIGURE, tmp_path / "digits.svg"))  # fmt: skip
    assert kept == drawn and {"24.1", "16.1", "15.2"} < set(kept)


def test_the_table_of_settings_has_each_with_both_defaults():
    rows = [[cell.strip(" `") for cell in line.split("|")] for line in write_pages.settings_table().splitlines()[2:]]
    assert [row[1] for row in rows] == [f"--mbj-{name.replace('_', '-')}" for name in RULES]
    (norm,) = (row for row in rows if row[3] == "NORM")
    (memory,) = (row for row in rows if row[3] == "MEMORY")
    assert (norm[2], norm[4]) == ("max", "max") and (memory[2], memory[4]) == ("feature", "prototype")


def test_what_fast_reid_lacks():
    pytest.importorskip("fastreid")
    from mbj_plugin.fastreid.config import LEFT_OUT

    assert set(write_pages.TIMM_ONLY) == set(LEFT_OUT)
