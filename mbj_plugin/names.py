"""Names that a user gives, checked against those that there are."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def check_known(what: str, name: str, names: Iterable[str]) -> None:
    """Raises ValueError where ``name`` is none of ``names``, with the nearest one and all of them.

    Args:
        what: kind of the name, as in "unknown WHAT 'name'".
        name: as given.
        names: those that there are.
    """
    if name not in (names := sorted(names)):
        raise ValueError(f"unknown {what} {name!r}{did_you_mean(name, names)} There are: {', '.join(names)}")


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The end of a message on a name that is not known; empty where none of ``names`` is near."""
    near = difflib.get_close_matches(name, list(names), 1)
    return f", did you mean {near[0]!r}?" if near else ""
