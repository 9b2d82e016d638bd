"""`python -m mbj_plugin.fastreid.autoload enable|disable|status`: bare fast-reid commands with the plugin, by choice.

`enable` writes two files into this environment's site-packages: a `.pth` line, which Python runs when it starts, and a
module that waits for `import fastreid` and then imports mbj_plugin.fastreid too. Programs that never import fast-reid
notice nothing. `disable` takes both away. fast-reid's own files are not touched.
"""

from __future__ import annotations

import argparse
import os
import sys
import sysconfig
from pathlib import Path

import mbj_plugin

MODULE = "_mbj_fastreid_autoload"
HOOK = '''"""Imports mbj_plugin.fastreid right after fastreid; `mbj_plugin.fastreid.autoload disable` removes it."""

import importlib.util
import sys

ROOT = {root!r}


class AfterFastreid:
    searching = False

    def find_spec(self, name, path=None, target=None):
        if name != "fastreid" or self.searching:
            return None
        # Others may only look for fastreid, or fail to import it the first time: this finder goes when it is imported.
        self.searching = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.searching = False
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module):
                run(module)
                load_plugin()
                if self in sys.meta_path:
                    sys.meta_path.remove(self)

            spec.loader.exec_module = exec_module
        return spec


def load_plugin():
    if importlib.util.find_spec("mbj_plugin") is None:
        sys.path.append(ROOT)
    try:
        import mbj_plugin.fastreid
    except ModuleNotFoundError as error:
        print(f"mbj_plugin autoload: the plugin is not loaded, {{error}}", file=sys.stderr)


sys.meta_path.insert(0, AfterFastreid())
'''


def files(folder: Path | str | None = None) -> tuple[Path, Path]:
    """The hook module and the .pth file, in site-packages unless another folder is given."""
    folder = Path(folder or sysconfig.get_path("purelib"))
    return folder / f"{MODULE}.py", folder / f"{MODULE}.pth"


def enable(folder: Path | str | None = None) -> Path:
    """Write the hook; returns the folder.

    Raises:
        PermissionError: where the folder cannot be written.
    """
    module, pth = files(folder)
    _check_writable(module.parent)
    module.write_text(HOOK.format(root=str(Path(mbj_plugin.__file__).parents[1])))
    pth.write_text(f"import {MODULE}\n")
    return module.parent


def disable(folder: Path | str | None = None) -> bool:
    """Remove the hook; False where there was none.

    Raises:
        PermissionError: where the folder cannot be written.
    """
    module, pth = files(folder)
    _check_writable(module.parent)
    compiled = module.parent.glob(f"__pycache__/{MODULE}.*.pyc")  # of each Python that ran it, optimized or not
    # The .pth first: without its module each start of Python would complain, wherever this is cut short.
    found = [file for file in (pth, module, *compiled) if file.exists()]
    for file in found:
        file.unlink(missing_ok=True)
    return bool(found)


def _check_writable(folder: Path) -> None:
    if not os.access(folder, os.W_OK):
        raise PermissionError(
            f"{folder} cannot be written: use a virtual environment of your own, or start scripts with "
            "`python -m mbj_plugin.fastreid.launch` instead"
        )


def enabled(folder: Path | str | None = None) -> bool:
    """Whether the hook is in place."""
    return all(file.exists() for file in files(folder))


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m mbj_plugin.fastreid.autoload", description=__doc__.split("\n")[0])
    parser.add_argument("action", choices=("enable", "disable", "status"))
    action = parser.parse_args(argv).action
    if action == "enable":
        print(f"autoload is on: `import fastreid` brings mbj_plugin.fastreid with it ({enable()})")
    elif action == "disable":
        print("autoload is off" if disable() else "autoload was not on")
    else:
        print(f"autoload is {'on' if enabled() else 'off'} ({files()[0].parent})")


if __name__ == "__main__":
    try:
        main()
    except PermissionError as error:
        sys.exit(str(error))
