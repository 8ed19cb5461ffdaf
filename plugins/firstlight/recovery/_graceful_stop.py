"""A signal or a time limit ends the run after the step under way, with a checkpoint and a truthful exit code."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from firstlight._require import require
from firstlight._shadows import Shadows
from firstlight.recovery._patient_workers import PatientWorkers
from firstlight.recovery._signal_flag import SignalFlag

SignalName = Literal["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP"]

_TIME_LIMIT = 1000  # in the place of a signal's number
_ASK_EVERY_SECONDS = 2.0
_ASK_AT_LEAST = 100  # steps


class GracefulStop(Callback):
    """Ends a run that is told to go: finishes the step, saves, lets the loggers write, exits with a truthful code.

    SIGTERM exits with 143 and SIGINT with 130, as the shell counts; SIGUSR1 (what SLURM sends before the time is up)
    and ``max_time`` exit with ``requeue_code``, by which a job script knows that the run wants to go on. The second
    signal ends the process at once. Saved is ``last.ckpt`` in the folder of the run's ``ModelCheckpoint``, from which
    ``fit(ckpt_path="last")`` goes on.

    A stop waits for the end of an accumulation window, and for a validation that is due: what comes after a resume is
    then what would have come anyway. Before such a validation it saves too, so that a kill meanwhile costs no step; a
    signal that comes during one waits for its end. A run that reaches its end before it can stop ends as usual.

    Several processes agree about every two seconds, by one reduction, and stop after the same step even if a single
    one got the signal. Handlers are in place while ``fit`` trains, in the main thread alone, and are put back after.
    They replace Lightning's own, which talks to other ranks from within the handler: a signal to one rank would hang
    all. A handler for SIGUSR1 that was there before (Lightning's requeue under SLURM, or yours) is called after the
    save, no longer in the middle of a step.

    Role: actor.
    Reads: signals, the clock.
    Writes: ``last.ckpt``; ends the process by ``SystemExit``.
    Logs: nothing.

    Args:
        signals: Names of the signals to heed.
        max_time: Seconds, or "DD:HH:MM:SS", that this process may take, counted from the making of this callback:
            unlike ``Trainer(max_time=...)`` counted anew after each resume, and not taken for the end of the run.
        requeue_code: Exit code of a run that wants to go on; 75 is sysexits' "temporary failure, try again".
        dirpath: Folder for ``last.ckpt``; needed only where there is no ``ModelCheckpoint``.

    Raises:
        ValueError: A signal or a time cannot be read; the code is not from 1 to 255.
    """

    role: ClassVar[str] = "actor"
    in_step: ClassVar[bool] = False  # experiments on copies go without it

    def __init__(
        self,
        *,
        signals: Sequence[SignalName] = ("SIGTERM", "SIGINT", "SIGUSR1"),
        max_time: str | float | None = None,
        requeue_code: int = 75,
        dirpath: str | None = None,
    ) -> None:
        known = [name for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP") if hasattr(signal, name)]
        for name in signals:
            require(name in known, "signals", name, f"among {', '.join(known)}")
        require(1 <= requeue_code <= 255, "requeue_code", requeue_code, "from 1 to 255")
        self.requeue_code = requeue_code
        self.dirpath = dirpath
        self._deadline = None if max_time is None else time.monotonic() + _seconds(max_time)
        self._flag = SignalFlag([signal.Signals[name] for name in signals])
        self._workers = PatientWorkers(self._flag)
        self._shadows = Shadows()
        self._reset()

    def _reset(self) -> None:
        self.stopped_by: str | None = None
        self._stop = 0  # why, once all ranks know
        self._saved_step = -1
        self._between_epochs = self._whole_window = False
        self._steps, self._ask_after, self._asked_at = 0, 1, time.monotonic()

    # Handlers are in place while the Trainer trains

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            # Last, wherever it was given: what it saves holds what the other callbacks did in the same hook.
            trainer.callbacks = [*(c for c in trainer.callbacks if c is not self), self]  # type: ignore[attr-defined]
            if self.dirpath is None and not _model_checkpoints(trainer):
                rank_zero_warn("GracefulStop has nowhere to save: give it a dirpath, or the Trainer a ModelCheckpoint")
            self._lift()
            process = trainer.strategy.process_dataloader

            def process_dataloader(loader: object) -> object:
                self._workers.guard(loader)
                return process(loader)

            self._shadows.put(trainer.strategy, "process_dataloader", process_dataloader)

    def _lift(self) -> None:
        self._shadows.lift()
        self._workers.lift()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen(trainer)

    def _listen(self, trainer: Trainer) -> None:
        """Take over the signals. Not before: Lightning sets its own handlers just before the sanity check."""
        if self._flag.installed:
            return
        self._reset()
        self._flag.echoes = trainer.world_size > 1 or "TORCHELASTIC_RUN_ID" in os.environ
        if not self._flag.install():
            rank_zero_info("GracefulStop cannot listen to signals outside of the main thread; max_time still holds")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._flag.restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # Until Lightning puts back all handlers, moments later, ours let a second signal end a teardown that hangs.
        self._flag.leave()
        self._lift()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._flag.restore()
        self._lift()

    # Where a run may end

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._agree(trainer)
        self._whole_window = self._window_is_done(trainer, pl_module, batch_idx)
        if self._stop and self._whole_window:
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._agree(trainer, now=True)
            if self._stop and self._whole_window and not trainer.is_last_batch:
                self._save(trainer, again=True)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._stop and self._saved_step == trainer.global_step:
            self._exit(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._agree(trainer, now=True)
        if self._stop:
            self._between_epochs = True
            self._save(trainer, again=True)
            self._exit(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let a checkpoint between two epochs say so.

        Lightning has counted the next epoch as begun here, and would on resume take it for done, since the batches
        of the last one are. All earlier hooks are too early: callbacks that monitor run last in each.
        """
        if self._between_epochs:
            loops = checkpoint["loops"]["fit_loop"]
            for count in ("total", "current"):
                loops["epoch_progress"][count]["ready"] -= 1
            if trainer.fit_loop._iteration_based_training():  # it goes on within the epoch, whatever the counts say
                loops["epoch_loop.batch_progress"]["current"] = dict.fromkeys(
                    loops["epoch_loop.batch_progress"]["current"], 0
                )
                loops["epoch_loop.batch_progress"]["is_last_batch"] = False
                loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1  # counted when it goes on

    @staticmethod
    def _window_is_done(trainer: Trainer, pl_module: LightningModule, batch_idx: int) -> bool:
        if not pl_module.automatic_optimization or trainer.is_last_batch:
            return True
        return (batch_idx + 1) % trainer.accumulate_grad_batches == 0

    # Agreement

    def _why(self) -> int:
        """Return the reason that this process knows: a signal's number, or the time limit's, or 0."""
        if self._flag.received is not None:
            return int(self._flag.received)
        return _TIME_LIMIT if self._deadline is not None and time.monotonic() >= self._deadline else 0

    def _agree(self, trainer: Trainer, *, now: bool = False) -> None:
        if self._stop:
            return
        if trainer.world_size == 1:
            self._stop = self._why()
            return
        self._steps += 1
        if self._steps < self._ask_after and not now:
            return
        seconds = (time.monotonic() - self._asked_at) / self._steps
        asked = torch.tensor([float(self._why()), seconds], device=trainer.strategy.root_device)
        reduced = trainer.strategy.reduce(asked, reduce_op="max")
        assert isinstance(reduced, torch.Tensor)
        self._stop, slowest = int(reduced[0]), float(reduced[1])
        # The same on all ranks, since the slowest's seconds are.
        self._ask_after = max(1, min(_ASK_AT_LEAST, int(_ASK_EVERY_SECONDS / max(slowest, 1e-6))))
        self._steps, self._asked_at = 0, time.monotonic()

    # The end

    def _save(self, trainer: Trainer, *, again: bool = False) -> None:
        if trainer.fast_dev_run or (self._saved_step == trainer.global_step and not again):  # type: ignore[attr-defined]
            self._saved_step = trainer.global_step
            return
        keepers = _model_checkpoints(trainer)
        keeper = next((c for c in keepers if c.save_last is True and not c.save_weights_only), None)
        if self.dirpath is None and keeper is not None:
            # It writes last.ckpt itself, and knows then that the file is its own.
            keeper._save_last_checkpoint(trainer, keeper._monitor_candidates(trainer))
        elif self.dirpath is not None or keepers:
            folder = Path(self.dirpath or keepers[0].dirpath or trainer.default_root_dir)
            trainer.save_checkpoint(folder / "last.ckpt")
        self._saved_step = trainer.global_step

    def _exit(self, trainer: Trainer) -> None:
        if self._stop == _TIME_LIMIT:
            code, what = self.requeue_code, "the time limit"
        else:
            received = signal.Signals(self._stop)
            ends = received in (signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGHUP", None))
            code, what = (128 + received if ends else self.requeue_code), received.name
            handler = self._flag.before(received)
            if not ends and callable(handler):
                handler(int(received), None)
        self.stopped_by = what
        rank_zero_info(f"stopped by {what} after step {trainer.global_step}; exit code {code}")
        raise SystemExit(code)


def _model_checkpoints(trainer: Trainer) -> list[ModelCheckpoint]:
    return [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]


def _seconds(time_limit: str | float) -> float:
    """Return seconds.

    >>> _seconds("00:01:00:30")
    3630.0
    """
    expected = "seconds above zero, or DD:HH:MM:SS"
    if isinstance(time_limit, str):
        found = re.fullmatch(r"(\d+):(\d\d):(\d\d):(\d\d)", time_limit)
        require(found is not None, "max_time", time_limit, expected)
        assert found is not None
        days, hours, minutes, seconds = (int(part) for part in found.groups())
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    require(0 < time_limit < float("inf"), "max_time", time_limit, expected)
    return float(time_limit)
