"""Checkpoints without secrets: ``save_hyperparameters()`` puts every argument into them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningDataModule, LightningModule

from firstlight.tracking import redact


def mask_hyperparameters(checkpoint: dict[str, Any]) -> None:
    """Mask the secrets among the arguments of module and data; the objects keep theirs."""
    for key in (LightningModule.CHECKPOINT_HYPER_PARAMS_KEY, LightningDataModule.CHECKPOINT_HYPER_PARAMS_KEY):
        if isinstance(checkpoint.get(key), dict):
            checkpoint[key] = redact(checkpoint[key])


class SecretFreeCheckpointIO(CheckpointIO):
    """Masks on the way to the disk: Lightning tells callbacks of no checkpoint that holds weights alone."""

    def __init__(self, inner: CheckpointIO) -> None:
        self.inner = inner

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        mask_hyperparameters(checkpoint)
        self.inner.save_checkpoint(checkpoint, path, storage_options)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self.inner.load_checkpoint(path, *args, **kwargs)

    def remove_checkpoint(self, path: str | Path) -> None:
        self.inner.remove_checkpoint(path)
