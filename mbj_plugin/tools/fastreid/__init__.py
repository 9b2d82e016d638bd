"""The commands for fast-reid: training, and the export of a finished run."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import mbj_plugin.fastreid  # noqa: F401  fast-reid cannot be imported before it
from fastreid_today import launch


@contextmanager
def one_line(command: str) -> Iterator[None]:
    """End the command with one line for a mistake of the user's, those that fast-reid's repairs find included."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        said = launch.one_line(error, "mbj_plugin")
        if said is None:
            raise
        sys.exit(f"{command}: {said}")
