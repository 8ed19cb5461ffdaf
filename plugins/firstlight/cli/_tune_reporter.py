"""The end of the line inside a trial: it reports every validation, and hears when the trial is over."""

from __future__ import annotations

import json
import math
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from firstlight.cli._errors import UsageError, nearest
from firstlight.cli._say import say

VARIABLE = "FIRSTLIGHT_TRIAL"


def reporters(folder: Callable[[], os.PathLike[str]]) -> list[Callback]:
    """Return the callback of a trial, if this process is one."""
    told = os.environ.get(VARIABLE)
    if not told:
        return []
    threading.Thread(target=_end_with_the_worker, daemon=True).start()
    return [TrialReporter(json.loads(told), folder)]


def _end_with_the_worker() -> None:
    """Wait for the end of standard input, which the worker holds open: nobody wants the result of an orphan."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


class TrialReporter(Callback):
    """Reports the monitored value of every validation, and ends a run that is not worth going on with."""

    def __init__(self, told: dict[str, Any], folder: Callable[[], os.PathLike[str]]) -> None:
        self.told = told
        self.folder = folder
        self.reports = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            from firstlight.cli._tune_store import running_trial  # Optuna, which only a search needs

            self.trial = running_trial(**self.told["trial"])
            self.trial.set_user_attr("run", os.fspath(self.folder()))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        name = self.told["monitor"]
        if name not in trainer.callback_metrics:
            known = sorted(str(key) for key in trainer.callback_metrics)
            raise UsageError(f"{name!r} is not logged{nearest(name, known)}", f"logged: {', '.join(known)}")
        self.reports += 1
        reason = self._report(float(trainer.callback_metrics[name])) if trainer.is_global_zero else ""
        reason = trainer.strategy.broadcast(reason)
        if reason:
            say(f"tune: {reason} after validation {self.reports}")
            trainer.should_stop = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.reports:
            raise UsageError(f"no validation ran, so {self.told['monitor']!r} was never measured")

    def _report(self, value: float) -> str:
        """Return why the run should stop, or nothing."""
        self.trial.report(value, self.reports)
        if not math.isfinite(value):
            return f"stopped, since {self.told['monitor']} is {value}"
        if self.told["prune"] and self.trial.should_prune():
            self.trial.set_user_attr("pruned", value=True)
            return "pruned, below the median of other trials"
        return ""
