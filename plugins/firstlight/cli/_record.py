"""What every run leaves in its folder before its first step."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from firstlight._require import did_you_mean, some
from firstlight.cli._checkpoints import Checkpoint
from firstlight.cli._csv_logger import RunCSVLogger
from firstlight.cli._say import say
from firstlight.cli._secret_free import mask_hyperparameters


class RunRecord(Callback):
    """Agrees with all processes on the run folder, and writes config.yaml into it."""

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        on_folder: Callable[[Path], None],
        *,
        resumes: Checkpoint | None = None,
    ) -> None:
        self.folder = folder
        self.config = config
        self.on_folder = on_folder
        self.resumes = resumes

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Processes started from outside (torchrun, SLURM) could not know which folder the first one chose.
        folder = trainer.strategy.broadcast(str(self.folder))
        if folder != str(self.folder):
            setattr(trainer, "_default_root_dir", folder)  # noqa: B010  without a public setter
            for logger in trainer.loggers:
                if isinstance(logger, RunCSVLogger):
                    logger.move_to(folder)
            self.folder = Path(folder)
            self.on_folder(self.folder)
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_config(self.config, self.folder / "config.yaml")
            resumed = {"resumed_from_step": self.resumes.step} if self.resumes else {}
            for logger in trainer.loggers:
                logger.log_hyperparams({**self.config, **resumed})
            if self.resumes:
                self._put_aside(self.resumes.refused)

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say now what would end the run after its first epoch."""
        logged = list(trainer.callback_metrics)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            monitor = getattr(callback, "monitor", None)
            if isinstance(monitor, str) and monitor not in logged:
                alike = [key for key in logged if _stage(key) == _stage(monitor)]
                if alike:
                    name, near = type(callback).__name__, did_you_mean(monitor, alike)
                    say(f"warning: {name} watches {monitor!r}, and the sanity check has logged {some(alike)}{near}")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Mask secrets, whoever writes the file: a sharded strategy or a plugin of the project's may."""
        mask_hyperparameters(checkpoint)

    def _put_aside(self, refused: tuple[Path, ...]) -> None:
        """Rename a refused last.ckpt, now that all processes have chosen: else last-v1.ckpt is written beside it."""
        for path in refused:
            if self.folder in path.parents and path.stem.startswith("last") and path.is_file():
                path.rename(path.with_name(f"{path.name}.refused"))


def _stage(key: str) -> str:
    """Return what a key begins with.

    >>> _stage("val/loss"), _stage("val_loss")
    ('val', 'val')
    """
    return re.split("[/_]", key)[0]


def write_config(config: dict[str, Any], path: Path) -> None:
    """Write the resolved configuration; one that it replaces is kept under a number.

    A file that cannot be written is no reason to refuse a run: the run itself will say so if it has to.
    """
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    if path.is_file():
        if path.read_text(encoding="utf-8") == text:
            return
        number = next(n for n in range(1, 10_000) if not path.with_name(f"config.{n}.yaml").exists())
        path.rename(path.with_name(f"config.{number}.yaml"))
    path.write_text(text, encoding="utf-8")


def changes(old: Any, new: Any, key: str = "") -> list[str]:
    """Return ``key: old -> new`` for every leaf that differs.

    >>> changes({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}})
    ['a.c: 2 -> 3']
    """
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for name in [*old, *(n for n in new if n not in old)]:
            found += changes(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
        return found
    return [] if old == new else [f"{key}: {old!r} -> {new!r}"]
