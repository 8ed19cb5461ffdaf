"""HealthHooks: watch any fit and sum it up, for a Callback of either Lightning package."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from firstlight import __version__
from firstlight._run_folder import run_folder
from firstlight.callbacks._gradient_monitor import GradientMonitor
from firstlight.callbacks._health_clock import Clock
from firstlight.callbacks._health_record import MOST_UNREAD, HealthRecord, Place
from firstlight.callbacks._health_text import to_text, what_stands_out

_Hook = TypeVar("_Hook", bound=Callable[..., None])


def _quietly(hook: _Hook) -> _Hook:
    """Stop watching at an exception: nobody asked for this callback line by line, so it must not end their run."""

    @functools.wraps(hook)
    def safe(self: HealthHooks, *arguments: Any) -> None:
        try:
            hook(self, *arguments)
        except Exception as error:
            self._stand_aside()
            _warn(f"firstlight stopped watching: {error!r}")

    return safe  # type: ignore[return-value]


def _warn(line: str) -> None:
    with contextlib.suppress(Exception):  # warnings may be errors here
        rank_zero_warn(line)


class HealthHooks:
    """Hooks of a callback that reads a fit and leaves ``firstlight-health.json`` and ``.txt`` in its folder.

    Role: observer.
    Reads: what ``GradientMonitor`` reads, through the one on the Trainer or one of its own; losses, rates and times.
    Writes: the two files and at most fifteen lines on standard error, from rank 0.
    Logs: as ``GradientMonitor``.

    It keeps no state in checkpoints, so that the same list of callbacks may serve two Trainers.
    """

    role: ClassVar[str] = "observer"
    _record: HealthRecord | None = None
    _monitor: GradientMonitor | None = None
    _own: GradientMonitor | None = None

    @_quietly
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._stand_aside()
        if trainer.barebones or next(c for c in trainer.callbacks if isinstance(c, HealthHooks)) is not self:
            return
        self._trainer, self._module = trainer, pl_module
        monitor = next((c for c in trainer.callbacks if isinstance(c, GradientMonitor)), None)
        if monitor is None:
            monitor = self._own = GradientMonitor()
            monitor.on_train_start(trainer, pl_module)
        monitor._listener = self
        self._monitor = monitor
        self._folder = run_folder(trainer)
        self._first_step = trainer.global_step
        self._clock = Clock()
        self._record = HealthRecord(pl_module.named_parameters)

    def _stand_aside(self) -> None:
        if self._monitor is not None:
            self._monitor._listener = None
        if self._own is not None:
            with contextlib.suppress(Exception):
                self._own.on_train_end(self._trainer, self._module)
        self._record = self._monitor = self._own = self._trainer = self._module = None

    @_quietly
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._now("data")

    @_quietly
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._now("step")
        if self._record is not None:
            self._record.at = Place(trainer.global_step, trainer.current_epoch, batch_idx)

    @_quietly
    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if self._own is not None:
            self._own.on_after_backward(trainer, pl_module)

    @_quietly
    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Optimizer) -> None:
        if self._own is not None:
            self._own.on_before_optimizer_step(trainer, pl_module, optimizer)

    @_quietly
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._record is None:
            return
        if self._own is not None:
            self._own.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else None
        if isinstance(loss, Tensor):
            # Lightning has divided it. A product, so a copy: the memory of a compiled graph's output is used again.
            loss = loss * (trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1)
        stepped = self._record.batch(loss)
        if (stepped and trainer._logger_connector.should_update_logs) or self._record.unread >= MOST_UNREAD:
            self._read(self._record)
        self._now("data")

    @_quietly
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._now("other")

    @_quietly
    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._now("other")

    @_quietly
    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self._now("other")

    @_quietly
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._finish(trainer, pl_module, "finished")

    @_quietly
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._finish(trainer, pl_module, f"ended by {type(exception).__name__}")

    @_quietly
    def hear_norms(self, optimizer: Optimizer, owners: Sequence[nn.Parameter], norms: Tensor, total: Tensor) -> None:
        if self._record is not None:
            self._record.at = self._record.at._replace(step=self._trainer.global_step)
            self._record.step(optimizer, owners, norms, total)

    @_quietly
    def hear_count(self, optimizer: Optimizer, count: Tensor) -> None:
        if self._record is not None:
            self._record.count(optimizer, count)

    @_quietly
    def hear_values(self, values: Mapping[str, Tensor]) -> None:
        if self._record is not None:
            self._record.values(values)

    def _read(self, record: HealthRecord) -> None:
        if self._monitor is not None:
            self._monitor.count()
        record.read()

    def _now(self, doing: str) -> None:
        if self._record is not None:
            self._clock.now(doing)

    def _finish(self, trainer: Any, pl_module: Any, ended: str) -> None:
        if self._record is None:
            return
        self._now("other")
        self._read(self._record)
        report = self._report(trainer, pl_module, ended)
        self._stand_aside()
        if not trainer.is_global_zero:
            return
        lines = to_text(report)
        if not trainer.fast_dev_run:
            written = _write(self._folder, json.dumps(_plain(report), indent=2, allow_nan=False), "\n".join(lines))
            lines += [f"  written to {written}"] if written else []
        sys.stderr.write("\n".join(["", *lines, ""]))
        sys.stderr.flush()

    def _report(self, trainer: Any, pl_module: Any, ended: str) -> dict[str, Any]:
        assert self._record is not None
        assert self._monitor is not None
        seconds = self._clock.seconds
        training = seconds["data"] + seconds["step"]
        steps = trainer.global_step - self._first_step
        report: dict[str, Any] = {
            "schema": "firstlight-health/1",
            "firstlight": __version__,
            "run": {
                "ended": ended,
                "module": type(pl_module).__qualname__,
                "first_step": self._first_step,
                "steps": steps,
                "batches": self._record.batches,
                "epochs": trainer.current_epoch,
                "device": trainer.strategy.root_device.type,
                "processes": trainer.world_size,
                "gradient_clip_val": trainer.gradient_clip_val,
                "loss_scaling": getattr(trainer.precision_plugin, "scaler", None) is not None,
                "seconds": {"fit": sum(seconds.values()), **seconds},
                "steps_per_second": steps / training if training else None,
                "waiting_fraction": seconds["data"] / training if training else None,
            },
            **self._record.as_dict(self._monitor._clips),
        }
        return report | {"stands_out": what_stands_out(report)}


def _write(folder: str, report: str, text: str) -> str | None:
    """Write both files, in place of those of an earlier fit; return the path of the first."""
    try:
        files = get_filesystem(folder)
        files.makedirs(folder, exist_ok=True)
        for name, content in (("firstlight-health.json", report), ("firstlight-health.txt", text)):
            with files.open(f"{folder}/{name}", "w") as file:
                file.write(f"{content}\n")
    except Exception as error:  # a full disk, or whatever a remote file system raises
        _warn(f"firstlight could not write its summary to {folder}: {error!r}")
        return None
    return f"{folder}/firstlight-health.json"


def _plain(value: Any) -> Any:
    """Return ``value`` with what JSON has no number for as text: nan, inf."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
