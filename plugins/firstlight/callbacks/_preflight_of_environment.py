"""What ``FIRSTLIGHT=preflight`` adds to every Trainer."""

from __future__ import annotations

from typing import ClassVar, final

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from firstlight._require import said_by
from firstlight.callbacks._preflight import Preflight


@final
class PreflightOfEnvironment(Callback):
    """A :class:`Preflight` that reports and lets the run go on, whatever it finds, and whatever fails in it.

    Role: probe.
    It stands aside where the Trainer has a Preflight of its own, and under ``Trainer(barebones=True)``.
    """

    role: ClassVar[str] = "probe"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if trainer.barebones or any(isinstance(callback, Preflight) for callback in callbacks):
            return
        if next(c for c in callbacks if isinstance(c, PreflightOfEnvironment)) is not self:
            return  # a Trainer that was built from another's callbacks
        try:
            Preflight(fail_on="never").on_train_start(trainer, pl_module)
        except Exception as error:
            rank_zero_warn(f"firstlight: the preflight failed, which says nothing about the run: {said_by(error)}")
