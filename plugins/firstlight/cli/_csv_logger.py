"""metrics.csv in the run folder, kept over a resume and readable while the run goes on."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

_SECONDS_BETWEEN_WRITES = 1.0


class _AppendingWriter(ExperimentWriter):
    """Lightning's writer, which deletes an existing file; this one goes on with it."""

    def _check_log_dir_exists(self) -> None:
        existing = Path(self.metrics_file_path)
        if existing.is_file():
            with existing.open(newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])


class RunCSVLogger(CSVLogger):
    """Writes ``<folder>/metrics.csv``; rows that are there stay."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__(save_dir=folder, name="", version="")
        self._written_at = time.monotonic()

    def move_to(self, folder: str) -> None:
        """Follow the run folder that the first process made."""
        self._save_dir = self._root_dir = folder

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer, made at its first use."""
        if self._experiment is None:
            self._experiment = _AppendingWriter(log_dir=self.log_dir)
        return self._experiment

    @rank_zero_only
    def log_hyperparams(self, params: Any = None) -> None:
        """Nothing: config.yaml in the same folder holds them all."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Record a row, and write rows at most once a second: Lightning's rule can leave them in memory for hours."""
        super().log_metrics(metrics, step)
        if time.monotonic() - self._written_at >= _SECONDS_BETWEEN_WRITES:
            self._written_at = time.monotonic()
            self.save()
