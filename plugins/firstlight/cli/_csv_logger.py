"""metrics.csv in the run folder, kept over a resume and readable while the run goes on."""

from __future__ import annotations

import csv
import itertools
import os
import shutil
import time
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

_SECONDS_BETWEEN_WRITES = 1.0
_TEXT: dict[str, Any] = {"newline": "", "encoding": "utf-8", "errors": "backslashreplace"}  # any key can be written


class _AppendingWriter(ExperimentWriter):
    """Lightning's writer, which deletes an existing file; this one goes on with it.

    A run that is resumed logs again what was logged after its checkpoint: with ``resumes`` the older rows make room,
    and the file as it was stays beside, under a number. A disk that takes nothing ends no run: rows wait in memory.
    """

    def __init__(self, log_dir: str, *, resumes: bool = False) -> None:
        self._file = Path(log_dir) / self.NAME_METRICS_FILE
        self._resumes = resumes
        self._resumes_at: int | None = None
        self._again: list[tuple[int, set[str]]] = []  # steps and keys that were logged again and are not written yet
        self._old: int | None = None  # so many rows of the file are of the attempts before
        self._fails = False
        super().__init__(log_dir=log_dir)

    def _check_log_dir_exists(self) -> None:
        if not self._file.is_file():
            return
        content = self._file.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):  # the last line was cut when the run was killed
            os.truncate(self._file, whole)
        if whole == 0:
            self._file.unlink()
        self.metrics_keys = self._read()[0]

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        if self._resumes and step is not None:
            self._resumes_at = step if self._resumes_at is None else self._resumes_at
            self._resumes = step == self._resumes_at
            if self._resumes:
                self._again.append((step, set(metrics_dict) - {"epoch"}))
        super().log_metrics(metrics_dict, step)

    def save(self) -> None:
        """Write the rows that wait, all of them or none."""
        if not self.metrics:
            return
        try:
            self._write()
            self.metrics, self._fails = [], False
        except Exception as error:  # a log ends no run, whatever is wrong with it
            if not self._fails:
                told = f"{self._file} cannot be written ({getattr(error, 'strerror', None) or error})"
                rank_zero_warn(f"{told}; its rows wait in memory until it can, the run itself goes on")
            self._fails = True

    def _write(self) -> None:
        keys = sorted({*self.metrics_keys, *itertools.chain.from_iterable(self.metrics)})
        if self._again or keys != self.metrics_keys:
            self._replace(keys)
            return
        size = self._file.stat().st_size
        try:
            with self._file.open("a", **_TEXT) as file:
                csv.DictWriter(file, keys).writerows(self.metrics)
        except OSError:
            os.truncate(self._file, size)
            raise

    def _replace(self, keys: list[str]) -> None:
        """Write the file anew: with other columns, or without rows that come again."""
        _, rows = self._read()
        old = len(rows) if self._old is None else self._old
        kept = [row for row in rows[:old] if not any(_comes_again(row, *again) for again in self._again)]
        if len(kept) < old and self._old is None:
            number = next(n for n in range(1, 10_000) if not self._file.with_name(f"metrics.{n}.csv").exists())
            shutil.copyfile(self._file, self._file.with_name(f"metrics.{number}.csv"))
        part = self._file.with_name(f".{self._file.name}.part")
        try:
            with part.open("w", **_TEXT) as file:
                writer = csv.DictWriter(file, keys)
                writer.writeheader()
                writer.writerows([*kept, *rows[old:], *self.metrics])
            part.replace(self._file)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        self.metrics_keys, self._again = keys, []
        self._old = len(kept) if self._resumes_at is not None else None

    def _read(self) -> tuple[list[str], list[dict[str, Any]]]:
        if not self._file.is_file():
            return [], []
        with self._file.open(**_TEXT) as file:
            reader = csv.DictReader(file)
            return list(reader.fieldnames or ()), list(reader)


def _comes_again(row: dict[str, Any], step: int, keys: set[str]) -> bool:
    at = float(row["step"] or "nan")
    return at > step or (at == step and any(row.get(key) for key in keys))


class RunCSVLogger(CSVLogger):
    """Writes ``<folder>/metrics.csv``; rows that are there stay, but for those that a resumed run logs again."""

    def __init__(self, folder: str | Path, *, resumes: bool = False) -> None:
        super().__init__(save_dir=folder, name="", version="")
        self._resumes = resumes
        self._written_at = time.monotonic()

    def move_to(self, folder: str) -> None:
        """Follow the run folder that the first process made."""
        self._save_dir = self._root_dir = folder

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer, made at its first use."""
        if self._experiment is None:
            self._experiment = _AppendingWriter(self.log_dir, resumes=self._resumes)
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
