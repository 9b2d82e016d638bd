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
        near = difflib.get_close_matches(name, names, 1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown {what} {name!r}{hint} There are: {', '.join(names)}")
