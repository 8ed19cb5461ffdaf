"""MaxNorm: no unit's incoming weights above a limit, after every step."""

from __future__ import annotations

from typing import Any, ClassVar, final

from lightning.pytorch import Callback, LightningModule, Trainer

from firstlight._require import require
from firstlight.regularizers import max_norm_


@final
class MaxNorm(Callback):
    """After each optimizer step scale down the incoming weights of every unit whose 2-norm is above ``limit``.

    Role: actor; it changes the weights that are out of bounds and no others.
    Reads: weights. Writes: weights. Logs: nothing.
    Source: Srebro et al. 2005; with dropout, Srivastava et al. 2014.

    Args:
        limit: largest 2-norm of the weights into one unit, by the axis that each torch layer has them on; see
            :func:`firstlight.regularizers.max_norm_`. Usually 1 to 4.

    Raises:
        ValueError: ``limit`` not above zero.
    """

    role: ClassVar[str] = "actor"

    def __init__(self, limit: float) -> None:
        require(0 < limit < float("inf"), "limit", limit, "above zero, and finite")
        self.limit = limit
        self._last_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self._last_step:  # else inside an accumulation window
            self._last_step = trainer.global_step
            max_norm_(pl_module, self.limit)
