"""Preflight: the whole checklist at the start of fit."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, final

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info

from firstlight._require import require, said_by
from firstlight.callbacks._report_files import write_report
from firstlight.checks import Severity
from firstlight.preflight import PreflightReport, run_preflight

_FAIL_ON = {"error": Severity.ERROR, "warning": Severity.WARNING, "never": None}


@final
class Preflight(Callback):
    """Before the first step, ask whether this set-up can learn, on copies; stop the run if it cannot.

    Role: probe; weights, buffers, optimizers, random numbers, flags and the position in the data are the same after as
    before.
    Reads: the module, its optimizers and schedules, up to 2048 training and validation samples.
    Writes: ``preflight.json`` and ``preflight.html`` in the run folder, if the Trainer has a logger.
    Logs: nothing to the metrics; to W&B the summary keys ``firstlight/verdict`` and ``firstlight/root``, the table
    ``firstlight/findings``, and an alert where the run is stopped.

    Skipped, with the reason: on resume, in ``fast_dev_run``, under sharded strategies. Under DDP rank 0 asks on its own
    part of the data, and all ranks take its answer.

    Args:
        budget_seconds: what is not begun by then is skipped, and the report says so.
        fail_on: the severity at which the run ends: ``"error"``, ``"warning"`` or ``"never"``.
        seed: of everything that is drawn.

    Raises:
        ValueError: an argument out of range.
        RuntimeError: in ``fit``, a finding at or above ``fail_on``; the message is the diagnosis.
    """

    role: ClassVar[str] = "probe"

    def __init__(
        self, *, budget_seconds: float = 30, fail_on: Literal["error", "warning", "never"] = "error", seed: int = 0
    ) -> None:
        require(budget_seconds > 0, "budget_seconds", budget_seconds, "above zero")
        require(fail_on in _FAIL_ON, "fail_on", fail_on, "'error', 'warning' or 'never'")
        self.budget_seconds = budget_seconds
        self.fail_on = fail_on
        self.seed = seed
        self.report: PreflightReport | None = None
        self.skipped: str | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.report, self.skipped = None, _reason_to_skip(trainer)
        if self.skipped is not None:
            rank_zero_info(f"Preflight skipped: {self.skipped}")
            return
        message = ""
        try:
            if trainer.is_global_zero:
                message = self._ask(trainer, pl_module)
        except Exception as error:
            trainer.strategy.broadcast(f"Preflight failed on rank 0: {said_by(error)}")  # the others wait for a word
            raise
        message = trainer.strategy.broadcast(message)
        if message:
            raise RuntimeError(message)

    def _ask(self, trainer: Trainer, pl_module: LightningModule) -> str:
        """Ask, tell, and return why the run is to end, if it is."""
        self.report = run_preflight(
            pl_module,
            _data(trainer),
            trainer=trainer,
            budget_seconds=self.budget_seconds,
            seed=self.seed,
        )
        self.report.print()
        write_report(trainer, self.report, "preflight")
        level = _FAIL_ON[self.fail_on]
        stops = level is not None and self.report.exit_code_at(level) == 1
        _tell(trainer, self.report, stopped=stops)
        return f"Preflight stopped the run: {self.report.root}" if stops else ""


def _reason_to_skip(trainer: Trainer) -> str | None:
    if trainer.global_step > 0:
        return "the run was resumed"
    if getattr(trainer, "fast_dev_run", False):
        return "fast_dev_run is to see whether the code runs at all"
    if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
        return f"{type(trainer.strategy).__name__} shards the model, and a shard cannot be copied"
    return None


def _data(trainer: Trainer) -> Any:
    """Return what to take batches from: the datamodule, the loaders that were passed, or the module's own."""
    datamodule = getattr(trainer, "datamodule", None)
    if datamodule is not None:
        return datamodule
    source = trainer.fit_loop._data_source
    if source.is_module():
        return None
    val = trainer.fit_loop.epoch_loop.val_loop._data_source
    return (source.instance, val.instance if val.is_defined() and not val.is_module() else None)


def _tell(trainer: Trainer, report: PreflightReport, *, stopped: bool) -> None:
    """Put verdict and findings where W&B shows them."""
    for logger in trainer.loggers:
        if not isinstance(logger, WandbLogger):
            continue
        run = logger.experiment
        root = report.root
        run.summary["firstlight/verdict"] = "clean" if root is None else str(root.severity)
        run.summary["firstlight/root"] = "" if root is None else root.name
        rows = [[f.code, f.name, str(f.severity), f.where, f.message, f.advice, f.tried or ""] for f in report.findings]
        columns = ["code", "name", "severity", "where", "message", "advice", "tried"]
        logger.log_table("firstlight/findings", columns=columns, data=rows)
        if stopped and root is not None:
            run.alert(title=f"{root.code} {root.name}"[:63], text=root.message, level="ERROR")
