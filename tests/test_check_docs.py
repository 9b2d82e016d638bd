"""tools/check_docs.py finds what a page names and nobody has; the pages have none of it."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "tools" / "check_docs.py"
spec = importlib.util.spec_from_file_location("check_docs", SCRIPT)
check_docs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_docs)


def test_every_block_of_the_pages_parses_and_names_what_is_there():
    wrong = [
        f"{page.name}:{line}: {problem}"
        for page in check_docs.pages()
        for line, language, content in check_docs.blocks(page.read_text())
        for problem in check_docs.problems(language, content, flags=False)  # they take `make docs-check`
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        ("make demos", "make has no target demos"),
        ("pip install '.[timm,reports]'", "there is no extra reports"),
        ("mbj trian DATA", "there is no command mbj trian"),
        ("python -m mbj_plugin.fastreid.docter", "there is no -m mbj_plugin.fastreid.docter"),
        ("A=1 python tools/train_tim.py DATA  # comment", "there is no tools/train_tim.py"),
        ("export A=1 && python tools/train_timm.py \\\n    -c cifar9", "there is no config cifar9"),
        ("if true", "syntax error"),
        ("python tools/check_docs.py --no-such", ""),
    ],
)
def test_what_is_not_there_is_found(block, problem):
    found = list(check_docs.problems("bash", block, flags=False))
    assert [problem in line for line in found] == [True] if problem else not found


def test_flags_are_asked_for(monkeypatch):
    monkeypatch.setattr(check_docs, "help_of", lambda command: "--mbj-eta ETA  --mbj")
    assert not list(check_docs.problems("bash", "mbj train DATA --mbj --mbj-eta 3"))
    (found,) = check_docs.problems("bash", "mbj train DATA --mbj-et 3")
    assert found == "mbj_plugin.tools.train_timm has no flag --mbj-et"
    assert not list(check_docs.problems("bash", "python -m mbj_plugin.timm.launch train.py --any"))


def test_python_blocks_are_compiled():
    assert not list(check_docs.problems("python", "x = 1"))
    assert list(check_docs.problems("python", "x = ("))
