"""What changes a host for good, ends its process or talks to other ranks is tried in forks, which have all imported."""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.multiprocessing as mp


class Ended(NamedTuple):
    status: int
    out: str
    err: str


def in_fork(folder: Path, call: Callable[[], object], *argv: object, **environment: str) -> Ended:
    """Call something as a process of its own, with these arguments and variables.

    Args:
        folder: for what it prints.
    """
    if torch.cuda.is_available():
        pytest.skip("autograd has a thread for each GPU, and a process with threads cannot fork")
    files = [folder / "stdout", folder / "stderr"]
    sys.stdout.flush(), sys.stderr.flush()
    if (child := os.fork()) == 0:
        status = 1
        try:
            streams = [file.open("w") for file in files]
            for descriptor, stream in zip((1, 2), streams, strict=True):
                os.dup2(stream.fileno(), descriptor)
            sys.stdout, sys.stderr = streams
            os.environ |= environment
            sys.argv = [*map(str, argv or ("python",))]
            call()
            status = 0
        except SystemExit as stop:
            if isinstance(stop.code, str):
                print(stop.code, file=sys.stderr)
            status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Ended(status, *(file.read_text() for file in files))


def two_ranks(call: Callable[..., object], *args: object) -> None:
    """``call(rank, *args)`` in two processes that run side by side."""
    start_forks(call, args, 2)


def start_forks(call: Callable[..., object], args: tuple[object, ...], nprocs: int) -> None:
    """torch's ``spawn`` without the seconds that a new process takes to import all anew, where there is no GPU."""
    mp.start_processes(call, args, nprocs=nprocs, start_method="spawn" if torch.cuda.is_available() else "fork")
