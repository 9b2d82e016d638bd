"""Mutation testing: change the source in one place at a time, and see whether the tests notice.

What came out: docs/results/mutants.md.

    python tools/mutants.py                               every module that pyproject.toml lists
    python tools/mutants.py mbj_plugin/sampling.py ...    these ones
    python tools/mutants.py --every 3 ...                 the first mutant of each three

The changes are cosmic-ray's, and statements that go. Each is made in a copy of the tree and tried in a fork of a
process that has imported torch, timm and what fast-reid imports already, ten times as fast as a new one; hence not on
Windows. Where pyproject.toml lists a part of a file's tests (`-k`, the fast ones), what they do not notice is tried on
all of them. Survivors are printed as they come.
"""

import argparse
import difflib
import gc
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import parso
import pytest
import toml  # comes with cosmic-ray
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).resolve().parents[1]
# Imported once, and not in every fork. Not fast-reid itself, which the plugin must come before.
PRELOADED = (
    *("timm.data", "timm.loss", "timm.optim", "timm.scheduler", "timm.task", "yacs.config"),
    *("sklearn.datasets", "sklearn.metrics"),
)
# One other operator for each, and one other bound: the dozen that cosmic-ray has say little more, at a dozen times the
# cost. A "|" is mostly of an annotation.
BINARY = "Add_Sub|Sub_Add|Mul_Div|Div_Mul|FloorDiv_Div|Mod_Mul|Pow_Mul|BitAnd_BitOr|BitXor_BitAnd|[LR]Shift_[LR]Shift"
COMPARISON = "Lt_LtE|LtE_Lt|Gt_GtE|GtE_Gt|Lt_Gt|Gt_Lt|Eq_NotEq|NotEq_Eq|Is_IsNot|IsNot_Is"
USED = re.compile(rf"core/(?!Variable|Replace(Binary|Comparison))|core/Replace\w+Operator_({BINARY}|{COMPARISON})$")


class RemoveStatement(Operator):
    """``pass`` in the place of a call whose result nobody takes, or of an ``x += y``."""

    def mutation_positions(self, node):
        if node.parent is None or node.parent.type != "simple_stmt" or node is not node.parent.children[0]:
            return
        sign = getattr(node.children[1], "value", "") if node.type == "expr_stmt" else ""
        if node.type == "atom_expr" or (sign != "=" and sign.endswith("=")):
            yield node.start_pos, node.end_pos

    def mutate(self, node, index):
        statement = parso.parse("pass\n").children[0].children[0]
        statement.prefix = node.get_first_leaf().prefix
        return statement

    @classmethod
    def examples(cls):
        return ()


def mutants(source: str) -> Iterator[str]:
    """The source with one change, for each change."""
    operators = [get_operator(name) for name in operator_names() if USED.match(name)]
    tree = get_ast(source)
    for operator in [kind() for kind in [*operators, RemoveStatement]]:
        positions = sum(1 for node in ast_nodes(tree) for _ in operator.mutation_positions(node))
        for occurrence in range(positions):
            changed = mutate_code(source, operator, occurrence)
            assert changed is not None
            yield changed


def passes(tree: Path, tests: list[str], seconds: int) -> bool:
    """Whether the tests pass, in a fork, within a time."""
    if (child := os.fork()) == 0:
        signal.alarm(seconds)
        os.chdir(tree)
        sys.path.insert(0, str(tree))
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1), os.dup2(nowhere.fileno(), 2)
        status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:unraisableexception", *tests])
        os._exit(int(status))
    return os.waitpid(child, 0)[1] == 0


def time_limit(tree: Path, tests: list[str]) -> int:
    """Seconds after which a loop without an end is noticed; an error where the tests fail without any change."""
    started = time.monotonic()
    if not passes(tree, tests, 3600):
        sys.exit(f"mutants: {' '.join(tests)} fail without any change")
    return 20 + 10 * round(time.monotonic() - started)


def mutate(module: str, tests: list[str], tree: Path, every: int) -> None:
    """Print the differences that no test noticed, and how many were."""
    path, source = tree / module, (ROOT / module).read_text()
    path.write_text(source)
    files = [test for test in tests if test.startswith("tests/")]
    tries = [(each, time_limit(tree, each)) for each in ([tests] if files == tests else [tests, files])]
    tried, noticed = list(dict.fromkeys(mutants(source)))[::every], 0
    for changed in tried:
        path.write_text(changed)
        if not all(passes(tree, each, seconds) for each, seconds in tries):
            noticed += 1
            continue
        lines = difflib.unified_diff(source.splitlines(), changed.splitlines(), module, module, n=1, lineterm="")
        print(*lines, sep="\n", flush=True)
    path.write_text(source)
    print(f"{module}: {noticed} of {len(tried)} mutants noticed", flush=True)


def main() -> None:
    listed = toml.loads((ROOT / "pyproject.toml").read_text())["tool"]["mutants"]
    parser = argparse.ArgumentParser()
    parser.add_argument("modules", nargs="*", default=list(listed))
    parser.add_argument("--every", type=int, default=1)
    args = parser.parse_args()
    if unknown := [module for module in args.modules if module not in listed]:
        sys.exit(f"mutants: pyproject.toml lists no tests for {unknown[0]}: add it to [tool.mutants]")
    # A compiled file is told from a newer source by its second and size, and mutants differ by less.
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # or each fork would copy all of torch where it collects garbage
    with tempfile.TemporaryDirectory() as folder:
        files = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for name in files.splitlines():
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, Path(folder) / name)
        for module in args.modules:
            mutate(module, listed[module], Path(folder), args.every)
    if args.modules == list(listed):
        installed = [name for name in files.splitlines() if re.match(r"(mbj_plugin|fastreid_today)/.*\.py$", name)]
        print("without tests of their own here:", *sorted({*installed} - {*listed}), sep="\n")


if __name__ == "__main__":
    main()
