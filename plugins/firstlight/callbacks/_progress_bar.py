"""Progress that suits where it is shown: a bar in a terminal or notebook, one line an epoch in a file."""

from __future__ import annotations

import os
import sys
import time
from typing import Any, ClassVar, Literal, final

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from firstlight._require import did_you_mean, require

Style = Literal["auto", "bar", "lines"]
_STYLES = ("auto", "bar", "lines")
_LOSS = "train/loss"


@final
class ProgressBar(TQDMProgressBar):
    """Shows a tqdm bar in a terminal or notebook, and in a file or CI log one plain line an epoch.

    A line holds epoch, step, training loss, validation metrics, learning rate and seconds; there is also one every
    ``line_every_n_seconds`` within a long epoch. The training loss is read from the device once every
    ``log_every_n_steps``, when the loggers wait for it anyway, and not at every step as ``prog_bar=True`` does.

    Role: observer.
    Reads: ``callback_metrics``, learning rates of the first optimizer.
    Writes: stdout, on rank 0.
    Logs: nothing.

    Raises:
        ValueError: ``style`` is not auto, bar or lines; a number below its least.
    """

    role: ClassVar[str] = "observer"

    def __init__(
        self,
        *,
        style: Style = "auto",
        refresh_rate: int = 1,
        leave: bool = False,
        line_every_n_seconds: float = 300.0,
    ) -> None:
        require(style in _STYLES, "style", style, "auto, bar or lines" + did_you_mean(str(style), _STYLES))
        require(refresh_rate >= 0, "refresh_rate", refresh_rate, "0 (off) or more batches")
        require(line_every_n_seconds > 0, "line_every_n_seconds", line_every_n_seconds, "above zero")
        super().__init__(refresh_rate=refresh_rate, leave=leave)
        self._style = style
        self._line_every_n_seconds = line_every_n_seconds
        self._lines = False
        self._loss: float | None = None
        self._loss_window = -1
        self._epoch_began = self._line_at = 0.0

    @property
    def is_enabled(self) -> bool:
        """Whether there are bars; lines are written where there are none."""
        return super().is_enabled and not self._lines

    @property
    def writes_lines(self) -> bool:
        """Whether this is a plain log."""
        return super().is_enabled and self._lines

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look where the output goes."""
        super().setup(trainer, pl_module, stage)
        self._lines = self._style == "lines" or (self._style == "auto" and not _shows_bars())

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        """Start the clock of the epoch."""
        super().on_train_epoch_start(trainer, *args)
        self._epoch_began = self._line_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar, or say in a long epoch that the run is alive."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.writes_lines and time.monotonic() - self._line_at > self._line_every_n_seconds:
            self._write_line(trainer, [f"batch {batch_idx + 1}/{trainer.num_training_batches}", *self._shown(trainer)])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the line of the epoch."""
        self._read_loss(trainer)  # on every rank: what is reduced over ranks is reduced when first read
        super().on_train_epoch_end(trainer, pl_module)
        if self.writes_lines:
            # What is logged only once an epoch is there by now; each value is read once.
            validation = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
            names = sorted((k for k in validation if k.count("/") == 1), key=lambda k: (k != "val/loss", k))
            self._write_line(trainer, [*self._shown(trainer), *(f"{k} {_short(validation[k])}" for k in names)])

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return what the bar shows: the training loss as last read, then what was logged with ``prog_bar=True``."""
        window = trainer.global_step // max(getattr(trainer, "log_every_n_steps", 50), 1)
        if window != self._loss_window:
            self._loss_window = window
            self._read_loss(trainer)
        items = dict(super().get_metrics(trainer, pl_module))
        items.pop("v_num", None)  # the run folder says more
        return items if self._loss is None else {_LOSS: _short(self._loss), **items}

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        """Write a line without breaking the bar."""
        if self.writes_lines:
            self._write(sep.join(map(str, args)))
        else:
            super().print(*args, sep=sep, **kwargs)

    def _read_loss(self, trainer: Trainer) -> None:
        loss = trainer.callback_metrics.get(_LOSS)
        self._loss = None if loss is None else float(loss)

    def _shown(self, trainer: Trainer) -> list[str]:
        self._read_loss(trainer)
        return [] if self._loss is None else [f"{_LOSS} {_short(self._loss)}"]

    def _write_line(self, trainer: Trainer, shown: list[str]) -> None:
        self._line_at = time.monotonic()
        last = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        of = f"/{last}" if last else ""
        epoch = f"epoch {trainer.current_epoch + 1:>{len(of) - 1 if of else 1}}{of}"
        rates = [f"lr {_short(float(trainer.optimizers[0].param_groups[0]['lr']))}"] if trainer.optimizers else []
        seconds = f"{self._line_at - self._epoch_began:.1f} s"
        self._write("  ".join([epoch, f"step {trainer.global_step}", *shown, *rates, seconds]))

    @staticmethod
    def _write(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def _shows_bars() -> bool:
    """Say whether a carriage return on stdout goes back to the start of a line on somebody's screen."""
    if "ipykernel" in sys.modules:  # a notebook: stdout is no terminal, but tqdm knows what to do
        return True
    try:
        has_width = os.get_terminal_size(sys.stdout.fileno()).columns > 0  # a terminal without one shows no bar
        return has_width and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    except (AttributeError, OSError, ValueError):  # no terminal, replaced, or closed
        return False


def _short(value: float) -> str:
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.3g}"
