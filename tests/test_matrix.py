"""tools/matrix.py: an environment's row, from what pytest wrote, in place of the row that it had."""

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "tools" / "matrix.py"
spec = importlib.util.spec_from_file_location("matrix", SCRIPT)
matrix = importlib.util.module_from_spec(spec)
spec.loader.exec_module(matrix)

JUNIT = """<testsuites><testsuite name="pytest" errors="1" failures="2" skipped="1" tests="9" time="61.7">
<testcase classname="tests.test_memory.TestBank" name="a"/><testcase classname="tests.timm.trainer.test_args" name="b"/>
</testsuite></testsuites>"""


def test_a_row_is_added_and_replaced(tmp_path, capsys):
    page, junit = tmp_path / "matrix.md", tmp_path / "junit.xml"
    page.write_text("# Title\n\n| environment |\n|---|\n| old | 1 |\n")
    matrix.main(["new", str(junit), "--page", str(page)])
    assert "| pytest did not end |" in page.read_text().splitlines()[-1]
    junit.write_text(JUNIT)
    matrix.main(["new", str(junit), "--page", str(page)])
    lines = page.read_text().splitlines()
    assert lines[:5] == ["# Title", "", "| environment |", "|---|", "| old | 1 |"] and len(lines) == 6
    assert "| core, timm | 5 passed, 3 failed, 1 skipped, 62 s |" in lines[5] and lines[5] in capsys.readouterr().out


def test_versions_are_those_that_run():
    import torch

    assert torch.__version__.startswith(matrix.version("torch")) and matrix.version("no_such_package") == "-"
