"""EarlyStopping: Lightning's, without its latch, and able to bring the best weights back."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, final

import lightning.pytorch.callbacks as lightning_callbacks
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from firstlight._require import require
from firstlight.callbacks._weight_ema import WeightEMA


@final
class EarlyStopping(lightning_callbacks.EarlyStopping):
    """Stop when a metric no longer improves; takes the arguments of Lightning's, and closes its gaps.

    * A decision before ``min_epochs`` or ``min_steps`` is not remembered: a run that recovers goes on.
    * ``start_epoch`` and ``start_step``: what the metric did before them does not count.
    * ``min_delta_mode="relative"``: the improvement asked for is a fraction of the best value.
    * ``restore_best``: the best weights come back at the end of ``fit``; with :class:`WeightEMA` or Lightning's
      ``WeightAveraging`` the best averages, which are what validation has measured.
    * ``patience`` is the constructor's after a resume too, not the checkpoint's; a run that was stopped by it already
      ends at once, where Lightning trains a further epoch.
    * A callback used again in a new Trainer starts afresh.
    * ``stopping_reason`` is the same on all ranks.
    * Without validation (``limit_val_batches=0``) it stands aside with one line instead of raising.

    Role: actor; it ends the run, and with ``restore_best`` sets the weights once, at the end.
    Reads: ``trainer.callback_metrics``. Writes: ``trainer.should_stop``. Logs: nothing.

    Raises:
        MisconfigurationException: an unknown ``mode``.
        RuntimeError: the metric is missing and ``strict``.
        ValueError: a negative ``patience``, ``start_epoch`` or ``start_step``.
    """

    role: ClassVar[str] = "actor"
    in_step: ClassVar[bool] = False  # experiments on copies go without it

    def __init__(
        self,
        monitor: str,
        min_delta: float = 0.0,
        patience: int = 3,
        verbose: bool = False,
        mode: str = "min",
        strict: bool = True,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_on_train_epoch_end: bool | None = None,
        log_rank_zero_only: bool = False,
        *,
        start_epoch: int = 0,
        start_step: int = 0,
        min_delta_mode: Literal["absolute", "relative"] = "absolute",
        restore_best: bool = False,
    ) -> None:
        require(patience >= 0, "patience", patience, "zero or more checks")
        require(start_epoch >= 0, "start_epoch", start_epoch, "zero or more")
        require(start_step >= 0, "start_step", start_step, "zero or more")
        require(min_delta_mode in ("absolute", "relative"), "min_delta_mode", min_delta_mode, "absolute or relative")
        super().__init__(
            monitor,
            min_delta,
            patience,
            verbose,
            mode,
            strict,
            check_finite,
            stopping_threshold,
            divergence_threshold,
            check_on_train_epoch_end,
            log_rank_zero_only,
        )
        self.start_epoch = start_epoch
        self.start_step = start_step
        self.min_delta_mode = min_delta_mode
        self.restore_best = restore_best
        self._delta = self.min_delta  # signed by Lightning: what an improvement must exceed
        self._best_weights: dict[str, Tensor] = {}
        self._best_step: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and trainer.global_step == 0:
            # A checkpoint, if there is one, is loaded after this.
            self.wait_count = self.stopped_epoch = 0
            self.stopping_reason, self.stopping_reason_message = EarlyStoppingReason.NOT_STOPPED, None
            self.best_score = torch.tensor(torch.inf if self.mode == "min" else -torch.inf)
            self._best_weights, self._best_step = {}, None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        patience = self.patience
        super().load_state_dict(state_dict)
        self.patience = patience
        self._best_step = state_dict.get("best_step")
        self._best_weights = dict(state_dict.get("best_weights", {}))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self.wait_count >= max(1, self.patience) and trainer.fit_loop._can_stop_early:
            trainer.should_stop = True
            rank_zero_info(f"EarlyStopping: {self.monitor} has not improved for {self.wait_count} checks: already over")

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if self.restore_best:
            state |= {"best_step": self._best_step, "best_weights": self._best_weights}
        return state

    def _run_early_stopping_check(self, trainer: Trainer) -> None:
        if self.monitor not in trainer.callback_metrics and not trainer.enable_validation:
            rank_zero_warn(f"EarlyStopping stands aside: no validation runs, so {self.monitor!r} is never measured")
            return
        if self.monitor not in trainer.callback_metrics and trainer.fit_loop.done:
            return  # max_steps or max_time ended the run inside its first epoch, before the first validation
        if trainer.current_epoch < self.start_epoch or trainer.global_step < self.start_step:
            return
        waited_for = self.best_score
        stopping_before = trainer.should_stop
        reason_before = self.stopping_reason, self.stopping_reason_message
        super()._run_early_stopping_check(trainer)
        if self.best_score is not waited_for:
            self._keep_weights(trainer)
        if trainer.should_stop and not stopping_before:
            if _may_stop(trainer):
                self._agree_on_reason(trainer)
            else:  # Lightning would remember the decision and carry it out at min_epochs, whatever happens until then
                trainer.should_stop = False
                self.stopping_reason, self.stopping_reason_message = reason_before
                self.stopped_epoch = 0

    def _evaluate_stopping_criteria(self, current: Tensor) -> tuple[bool, str | None]:
        if self.min_delta_mode == "relative" and torch.isfinite(self.best_score):
            self.min_delta = self._delta * float(self.best_score.abs())
        elif self.min_delta_mode == "relative":
            self.min_delta = 0.0
        # Lightning keeps the very tensor it was given, which on the device may change under us.
        return super()._evaluate_stopping_criteria(current.detach().clone())

    def _agree_on_reason(self, trainer: Trainer) -> None:
        """Give the ranks that did not decide the reason of the first that did."""
        value = -1 if self.stopping_reason is EarlyStoppingReason.NOT_STOPPED else int(self.stopping_reason.value)
        agreed = trainer.strategy.reduce(torch.tensor(value, device=trainer.strategy.root_device), reduce_op="max")
        self.stopping_reason = EarlyStoppingReason(int(agreed))
        self.stopped_epoch = trainer.current_epoch
        message = self.stopping_reason_message or f"another rank: {self.stopping_reason.name}"
        self.stopping_reason_message = message
        rank_zero_info(f"EarlyStopping at epoch {trainer.current_epoch}: {message}")

    def _keep_weights(self, trainer: Trainer) -> None:
        if not self.restore_best:
            return
        if isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy)):
            rank_zero_warn("EarlyStopping cannot keep the best weights of a sharded model; use ModelCheckpoint instead")
            self.restore_best = False
            return
        checkpoint = {"state_dict": trainer.lightning_module.state_dict()}
        for averaging in _averaging(trainer):  # by now training has its own weights back; what it saves was measured
            averaging.on_save_checkpoint(trainer, trainer.lightning_module, checkpoint)
        self._best_weights = {name: value.detach().cpu().clone() for name, value in checkpoint["state_dict"].items()}
        self._best_step = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if self._restore(trainer, pl_module):
            rank_zero_info(f"EarlyStopping: the weights are those of step {self._best_step}, the best {self.monitor}")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if _averaging(trainer):  # listed after this one it has put its last average over the best
            self._restore(trainer, pl_module)

    def _restore(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        due = self.restore_best and bool(self._best_weights) and self._best_step != trainer.global_step
        if due:
            pl_module.load_state_dict(self._best_weights)
        return due


def _averaging(trainer: Trainer) -> list[Callback]:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [c for c in callbacks if isinstance(c, (WeightEMA, lightning_callbacks.WeightAveraging))]


def _may_stop(trainer: Trainer) -> bool:
    """Whether the run has reached ``min_epochs`` and ``min_steps``, counting an epoch that is ending."""
    min_epochs, min_steps = trainer.min_epochs or 0, trainer.min_steps or 0
    epochs = trainer.current_epoch + int(trainer.fit_loop.epoch_loop.batch_progress.is_last_batch)
    return epochs >= min_epochs and trainer.global_step >= min_steps
