"""Where a callback leaves its report of a run, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from firstlight._run_folder import run_folder
from firstlight.preflight import PreflightReport


def write_report(trainer: Any, report: PreflightReport, name: str) -> None:
    """Write ``<name>.json`` and ``<name>.html`` into the run folder, if there is a logger that makes one; on rank 0."""
    if not (trainer.is_global_zero and trainer.loggers):
        return
    folder = Path(run_folder(trainer))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(report.to_json(), encoding="utf-8")
        (folder / f"{name}.html").write_text(report.to_html(), encoding="utf-8")
    except OSError as error:
        rank_zero_warn(f"{name}.json could not be written to {folder}: {error}")
