"""The folder of a Trainer's run."""

from __future__ import annotations

from typing import Any


def run_folder(trainer: Any) -> str:
    """Return what ``trainer.log_dir`` is on rank 0, without its broadcast: no process waits for another here."""
    for logger in trainer.loggers[:1]:
        return str(getattr(logger, "log_dir", None) or logger.save_dir or trainer.default_root_dir)
    return str(trainer.default_root_dir)
