"""Files of a run: written whole or not at all, and a folder that one process trains into."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_HELD: dict[Path, int] = {}  # folders that this process trains into, and what holds their locks


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to, which replaces it at the end. What goes wrong leaves ``path`` as it was.

    For what a run writes into its own folder. Tools that run afterwards take :mod:`mbj_plugin.tools.files`.
    """
    part = path.with_name(path.name + ".part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_path(path) as part:
        part.write_text(text)


def lock(folder: Path) -> bool:
    """Hold a run's folder for this process, until :func:`unlock` or its end, killed too; False where another has it.

    Where the system has no such locks, as on Windows, nothing is held.
    """
    if fcntl is None or folder.resolve() in _HELD:
        return True
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        return not isinstance(error, BlockingIOError)  # others: a file system without locks
    _HELD[folder.resolve()] = handle
    return True


def unlock(folder: Path) -> None:
    """The run is over: another process may go on with it."""
    handle = _HELD.pop(folder.resolve(), None)
    if handle is not None:
        os.close(handle)
