"""Writes the scalars of a run into its folder: diagnostics.jsonl, and TensorBoard event files where it is installed."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path

from mbj_plugin.files import drop_epochs

_logger = logging.getLogger("mbj_plugin")
FILE = "diagnostics.jsonl"


class DiagnosticsWriter:
    """One line of ``diagnostics.jsonl`` per time point, and the same scalars as TensorBoard events.

    Each line is flushed when it is written: a kill loses at most the last. Rows and events of ``first_epoch`` and
    later, which a resumed run writes again, are dropped first.

    Args:
        folder: the run's folder, which exists.
        first_epoch: epoch (from 0) that the run begins or goes on with.
        first_step: training iterations done before.
        tensorboard: write event files; where the package is missing, a log line says so once.
    """

    def __init__(self, folder: Path | str, first_epoch: int, first_step: int, tensorboard: bool = True) -> None:
        self.path = Path(folder) / FILE
        drop_epochs(self.path, first_epoch)
        self._events = _event_writer(folder, first_step) if tensorboard else None

    def write(self, step: int, epoch: int, scalars: Mapping[str, float]) -> None:
        """Add a time point; scalars that are not finite are left out.

        Args:
            step: training iterations done.
            epoch: the epoch (from 0) that has ended.
            scalars: tag to value.
        """
        known = {name: value for name, value in scalars.items() if math.isfinite(value)}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "epoch": epoch, **known}) + "\n")
        if self._events is not None:
            self._events.add(step, known)

    def close(self) -> None:
        """End the event file."""
        if self._events is not None:
            self._events.close()


class _Events:
    """TensorBoard events, all scalars of a time point in one: a sixth of the time that one event each takes."""

    def __init__(self, folder: Path | str, first_step: int) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from torch.utils.tensorboard import FileWriter

        self._summary = summary_pb2.Summary
        self._file = FileWriter(str(folder))
        # As SummaryWriter's purge_step: TensorBoard drops what an earlier start of the run wrote from here on.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._file.add_event(event_pb2.Event(session_log=start), first_step + 1)

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._file.add_summary(self._summary(value=values), step)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _event_writer(folder: Path | str, first_step: int) -> _Events | None:
    try:
        return _Events(folder, first_step)
    except ImportError:
        _logger.info("No TensorBoard events, only %s: pip install tensorboard for them.", FILE)
    except Exception as error:  # whatever TensorBoard or a full disk raises: it must not end the run
        _logger.warning("No TensorBoard events, only %s: %r", FILE, error)
    return None
