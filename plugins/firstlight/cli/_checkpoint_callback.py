"""The checkpoint slot: Lightning's ModelCheckpoint with the run's habits."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Literal, final

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from firstlight.recovery import CheckpointWriteError


# final: the configuration then needs no class_path, and keys of several files merge.
@final
class RunCheckpoint(ModelCheckpoint):
    """Keeps the best checkpoints by a metric, and the last one, in the run folder.

    Args:
        monitor: Logged value that decides what is best; without one the newest is kept.
        mode: Whether a low or a high value is good.
        save_top_k: How many of the best are kept; -1 keeps all.
        save_last: Also keep last.ckpt, from which --resume continues.
        filename: Pattern of the name, such as "{epoch:03d}".
        every_n_epochs: Save after every n epochs.
        every_n_train_steps: Save after every n steps.
        save_on_exception: Save when training ends by an exception.
        save_on_train_epoch_end: Save at the end of the training epoch and not after validation.
        save_weights_only: Leave out the state that --resume needs.
        dirpath: Another folder than checkpoints/ in the run folder.
    """

    def __init__(
        self,
        monitor: str | None = None,
        *,
        mode: Literal["min", "max"] = "min",
        save_top_k: int = 1,
        save_last: bool = True,
        filename: str | None = None,
        every_n_epochs: int | None = None,
        every_n_train_steps: int | None = None,
        save_on_exception: bool = False,
        save_on_train_epoch_end: bool | None = None,
        save_weights_only: bool = False,
        dirpath: str | None = None,
    ) -> None:
        super().__init__(
            dirpath=dirpath,
            filename=filename,
            monitor=monitor,
            save_last=save_last,
            save_top_k=save_top_k,
            save_on_exception=save_on_exception,
            save_weights_only=save_weights_only,
            mode=mode,
            every_n_train_steps=every_n_train_steps,
            every_n_epochs=every_n_epochs,
            save_on_train_epoch_end=save_on_train_epoch_end,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        with warnings.catch_warnings():
            # A resumed run goes on in its own folder: that it holds checkpoints is the point.
            warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
            super().setup(trainer, pl_module, stage)
        if trainer.is_global_zero and stage == "fit" and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            _probe(str(self.dirpath))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        # Lightning drops this callback's state where its settings have changed, and then begins a last-v1.ckpt.
        came_from = Path(str(trainer.ckpt_path)) if trainer.ckpt_path else None
        last = Path(str(self.dirpath)) / f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}"
        if not self.last_model_path and came_from is not None and came_from.parent == last.parent and last.exists():
            self.last_model_path = str(last)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if self._should_save_on_train_epoch_end(trainer):
            self._keep_last(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if not self._should_save_on_train_epoch_end(trainer):
            self._keep_last(trainer)

    def _keep_last(self, trainer: Trainer) -> None:
        """Write last.ckpt although nothing improved: Lightning lets it fall behind, and a resume repeats epochs."""
        due = self._every_n_epochs >= 1 and (trainer.current_epoch + 1) % self._every_n_epochs == 0
        if self.save_last and due and not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))


def _probe(dirpath: str) -> None:
    """Find out before the first step that nothing can be saved, and not after the first epoch."""
    if "://" in dirpath:
        return
    folder = Path(dirpath)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        told = f"cannot write checkpoints into {folder}: {error.strerror}; give another --checkpoint.dirpath"
        raise CheckpointWriteError(error.errno, told) from error
