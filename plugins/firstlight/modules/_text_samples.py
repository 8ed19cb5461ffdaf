"""Text that a model wrote, where a person will see it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Trainer


def show_samples(trainer: Trainer, key: str, rows: Sequence[tuple[str, str]]) -> None:
    """Log rows of (prompt, continuation) to loggers that take tables; without one, append them to ``samples.txt``."""
    folder = Path(trainer.log_dir or trainer.default_root_dir)  # asks all ranks: log_dir is a broadcast
    if not trainer.is_global_zero:
        return
    loggers = [logger for logger in trainer.loggers if hasattr(logger, "log_table")]
    for logger in loggers:
        columns, data = ["prompt", "continuation"], [list(row) for row in rows]
        logger.log_table(key, columns=columns, data=data, step=trainer.global_step)
    if not loggers:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "samples.txt").open("a", encoding="utf-8") as file:
            for prompt, text in rows:
                file.write(f"--- step {trainer.global_step}: {prompt!r}\n{prompt}{text}\n")
