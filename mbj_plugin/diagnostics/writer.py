"""Writes the scalars of a run into its folder: diagnostics.jsonl, and TensorBoard event files where it is installed."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
        self.events: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter

                self.events = SummaryWriter(str(folder), purge_step=first_step + 1)
            except Exception as error:  # it is not installed, or the disk is full: neither must end the run
                _logger.warning("No TensorBoard events, only %s (pip install tensorboard): %r", FILE, error)

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
        if self.events is not None:
            for name, value in known.items():
                self.events.add_scalar(name, value, step)
            self.events.flush()

    def close(self) -> None:
        """End the event file."""
        if self.events is not None:
            self.events.close()
