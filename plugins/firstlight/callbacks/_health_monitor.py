"""HealthMonitor: the checks that watch a run."""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import GradClipAlgorithmType, rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.optim import Optimizer

from firstlight._require import require
from firstlight.callbacks._health_losses import UnreadLosses
from firstlight.callbacks._health_readings import Readings
from firstlight.callbacks._report_files import write_report
from firstlight.callbacks._step_sample import StepSample
from firstlight.checks import WATCH_CHECKS, Check, Evidence, Finding, Severity
from firstlight.preflight import PreflightReport, first_nonfinite, report_of

_REPORT_EVERY = 50  # steps: losses wait on the device until then
_ASK_EVERY = 200  # steps between two looks at all checks
_SAMPLE_EVERY = 10  # steps, at least
_FORCED = 2  # samples that are taken whatever they cost: most faults show here


@final
class HealthMonitor(Callback):
    """Watch a run: losses at every step, layers at as many steps as ``budget`` allows; say what goes wrong, once.

    Losses stay on the device and are read together. At a sampled step it also reads activations (units without slope,
    saturation), gradients and updates. It adds up its own time and does not sample while that is above ``budget`` of
    the run so far. A loss that is not finite is found at once on a CPU, and with the next read on a GPU; the batch is
    run again on a copy, and the first module to show it is named.

    A checkpoint holds what was read and what was told, so that a resumed run is judged as one. Of a checkpoint without
    it, or of other parameters, nothing is taken; whether the loss falls is then not judged, since its start is unknown.

    Role: observer.
    Reads: losses, activations, gradients and weights. Writes: ``health.json`` and ``health.html`` in the run folder at
    the end or at an exception, if the Trainer has a logger. Logs: ``check/<code>``, 1 at the step at which a check
    first finds something.

    Args:
        checks: what to ask; default: all that watch. A code such as ``"FL613"`` names one.
        budget: share of the run's time that it may take, in (0, 1).

    Raises:
        ValueError: an unknown code; a budget out of range.

    With several processes losses are means over them, read together every 50 batches; a loss that is not finite is
    named with its rank; layers are those of rank 0, which also does the telling. Under sharded strategies it watches
    the losses only. Activations of compiled nets are not seen.
    """

    role: ClassVar[str] = "observer"

    def __init__(self, *, checks: Sequence[str] | None = None, budget: float = 0.02) -> None:
        require(0 < budget < 1, "budget", budget, "a share between 0 and 1")
        known = {check.code: check for check in WATCH_CHECKS}
        for code in checks or ():
            require(code in known, "checks", code, f"codes among {', '.join(known)}")
        self.checks = None if checks is None else list(checks)
        self.budget = budget
        self.report: PreflightReport | None = None
        self._asked: list[Check] = [check for check in WATCH_CHECKS if checks is None or check.code in checks]
        # two may ask two things
        self._key = self._generate_state_key(checks=None if checks is None else sorted(checks))
        self._loaded: dict[str, Any] = {}
        self._names: list[str] = []
        self._forget()

    def _forget(self) -> None:
        self._readings = Readings()
        self._losses = UnreadLosses()
        self._loss: float | None = None  # of this batch, if its reading waits for nothing
        self._bad_where: str | None = None  # the first module to show a loss that is not finite, here
        self._findings: dict[str, Finding] = {}
        self._own_seconds = self._last_cost = 0.0
        self._began = self._forward_began = time.perf_counter()
        self._forward = math.inf  # seconds that a step takes to its loss when nobody listens, of the last one before
        self._sample: StepSample | None = None  # of this batch
        self._batches = self._ask_at = self._samples = 0
        self._due = False  # a sample, at the next step of an optimizer
        self._batch: Any = None
        self._layers = self._together = False

    @property
    def overhead(self) -> float:
        """Share of the time since the start of training that this callback took."""
        return self._own_seconds / max(time.perf_counter() - self._began, 1e-9)

    @property
    def findings(self) -> list[Finding]:
        """What has been found so far, in the order in which it showed."""
        return list(self._findings.values())

    @property
    def state_key(self) -> str:
        return self._key

    def state_dict(self) -> dict[str, Any]:
        if not self._batches:
            return {}
        return {
            "parameters": list(self._names),
            "readings": self._readings.state_dict(),
            "losses": self._losses.state_dict(),
            "bad_where": self._bad_where,
            "findings": [dataclasses.asdict(f) | {"severity": int(f.severity)} for f in self._findings.values()],
            "seconds": [time.perf_counter() - self._began, self._own_seconds, self._last_cost],
            "counts": [self._batches, self._ask_at, self._samples, int(self._due)],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._loaded = {}  # a checkpoint, if there is one, is loaded after this

    def _take_up(self, trainer: Trainer) -> None:
        """Go on from the checkpoint that was loaded, if it is one of this model."""
        state, self._loaded = self._loaded, {}
        if state and state["parameters"] != self._names:
            rank_zero_info("HealthMonitor begins anew: the checkpoint is of a model with other parameters")
            state = {}
        self._readings.met_late = not state and trainer.global_step > 0
        if not state:
            return
        self._readings.load_state_dict(state["readings"])
        self._losses = UnreadLosses(state["losses"].tolist())
        self._bad_where = state["bad_where"]
        for plain in state["findings"]:
            finding = Finding(**(plain | {"severity": Severity(plain["severity"])}))
            self._findings[finding.code] = finding
        passed, self._own_seconds, self._last_cost = state["seconds"]
        self._began -= passed
        self._batches, self._ask_at, self._samples, due = state["counts"]
        self._due = bool(due)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._forget()
        self.report = None
        self._layers = isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy))
        self._on_cpu = trainer.strategy.root_device.type == "cpu"
        if not self._layers:
            rank_zero_info(
                f"HealthMonitor watches losses only under {type(trainer.strategy).__name__}: layers are shards"
            )
        self._several = len(trainer.optimizers) > 1 or not pl_module.automatic_optimization
        self._together = trainer.world_size > 1
        clip = trainer.gradient_clip_val
        by_norm = trainer.gradient_clip_algorithm != GradClipAlgorithmType.VALUE
        # Clipping that is not torch's by norm is measured: GradientClipping, by value, the module's own.
        own = pl_module.automatic_optimization and is_overridden("configure_gradient_clipping", pl_module)
        self._clip = float(clip) if clip and by_norm and not own else None
        self._measure_after = own or bool(clip and not by_norm)
        self._began = time.perf_counter()
        self._names = [name for name, _ in pl_module.named_parameters()]
        self._take_up(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch = batch
        turn = self._batches % _SAMPLE_EVERY
        self._due = self._layers and (self._due or turn == 0)
        # inside an accumulation window there is no update to see
        if self._due and not (pl_module.automatic_optimization and trainer.fit_loop._should_accumulate()):
            self._due = False
            now = time.perf_counter()
            affordable = self._own_seconds + self._last_cost <= self.budget * (now - self._began)
            if affordable or self._samples < _FORCED:
                self._samples += 1
                self._sample = StepSample(pl_module)
                self._spend(now)
                self._forward_began = time.perf_counter()
        elif turn == _SAMPLE_EVERY - 1:
            self._forward_began = time.perf_counter()

    def _spend(self, start: float) -> None:
        spent = time.perf_counter() - start
        self._own_seconds += spent
        if self._sample is not None:
            self._sample.seconds += spent

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        start = time.perf_counter()
        if self._sample is not None and self._sample.listens:
            listened = start - self._forward_began
            self._sample.stop_listening()
            start -= max(0.0, listened - self._forward)  # to listen takes time, too
        elif self._batches % _SAMPLE_EVERY == _SAMPLE_EVERY - 1:
            self._forward = start - self._forward_began
        if self._on_cpu and loss.numel() == 1:  # self.manual_backward takes others too
            # Nothing waits for it, and before the step the weights are still those that made this loss.
            self._loss = _read_now(loss)
            if not math.isfinite(self._loss) and self._bad_where is None and self._readings.nonfinite_step is None:
                self._losses.add_bad()
                self._bad_where = self._replayed(trainer, pl_module)
        self._spend(start)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._sample is not None:
            start = time.perf_counter()
            self._sample.see_step(pl_module, optimizer)
            self._spend(start)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        start = time.perf_counter()
        self._batches += 1
        if self._loss is not None and not self._several:
            self._losses.add(self._loss)
        else:
            loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                self._losses.add(None)
            else:  # a copy: the memory of a compiled graph's output is used again
                self._losses.add(_read_now(loss) if self._on_cpu else loss.detach().clone())
        self._loss = None
        if self._sample is not None:
            self._sample.read(pl_module, self._readings, clip=self._clip, measure_after=self._measure_after)
        # ranks come here after as many batches, though one may sample less than another
        if self._batches % _REPORT_EVERY == 0 or self._batches <= 2:
            self._read(trainer, pl_module)
        self._spend(start)
        if self._sample is not None:
            self._last_cost, self._sample = self._sample.seconds, None

    def _read(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the losses that wait on the device, and ask the checks if it is time."""
        self._read_losses(trainer, pl_module, together=self._together)
        due = self._readings.steps >= self._ask_at and self.overhead <= self.budget
        if due or (self._readings.nonfinite_step is not None and "FL611" not in self._findings):
            self._ask_at = self._readings.steps + _ASK_EVERY
            self._ask(trainer, pl_module)

    def _read_losses(self, trainer: Trainer, pl_module: LightningModule, *, together: bool) -> None:
        """Read the losses that wait on the device, at once; ``together`` means of all ranks, and all must come here."""
        read = self._losses.read_over(trainer.strategy) if together else self._losses.read()
        readings, rank = self._readings, trainer.global_rank
        readings.see_losses(read.values)
        if read.bad is None or readings.nonfinite_step is not None:
            return
        first = read.ranks[0] if together else rank
        where = self._bad_where
        if where is None and rank == first:
            where = self._replayed(trainer, pl_module)
        readings.nonfinite_step = self._batches - 1 - read.bad
        readings.nonfinite_where = (trainer.strategy.broadcast(where, src=first) if together else where) or ""
        if self._together and len(read.ranks) < trainer.world_size:
            readings.nonfinite_rank = first

    def _replayed(self, trainer: Trainer, pl_module: LightningModule) -> str:
        """Return the first module to show a value that is not finite; a rank that holds shards cannot look alone."""
        return first_nonfinite(pl_module, self._batch, trainer) if self._layers else ""

    def _ask(self, trainer: Trainer, pl_module: LightningModule | None, *, alone: bool = False) -> None:
        evidence = self._evidence(trainer)
        for check in self._asked:
            if check.missing(evidence) is not None:
                continue
            for finding in check(evidence):
                known = self._findings.get(finding.code)
                self._findings[finding.code] = finding
                if known is None or known.severity < finding.severity:
                    self._say(trainer, pl_module, finding, alone=alone)

    def _say(self, trainer: Trainer, pl_module: LightningModule | None, finding: Finding, *, alone: bool) -> None:
        if finding.severity >= Severity.WARNING:
            text = f"step {trainer.global_step}: {finding}; {finding.advice}"
            if alone and finding.code == "FL611" and self._readings.nonfinite_rank == trainer.global_rank:
                warnings.warn(text, stacklevel=2)  # no other rank will hear of it
            else:
                rank_zero_warn(text)
        if pl_module is not None and trainer.training:
            pl_module.log(f"check/{finding.code}", torch.ones((), device=pl_module.device), batch_size=1)

    def _evidence(self, trainer: Trainer) -> Evidence:
        per_step = max(1, trainer.accumulate_grad_batches)
        return self._readings.evidence(several_optimizers=self._several, planned=_planned(trainer), per_step=per_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        start = time.perf_counter()
        metrics = trainer.callback_metrics  # once: each look at it reads from the device
        named = [key for key in metrics if key.startswith("val") and "loss" in key]
        key = next((key for key in ("val/loss", "val_loss", *named) if key in metrics), None)
        if key is not None and self._readings.recent:
            recent = list(self._readings.recent)[-50:]
            self._readings.val.append(float(metrics[key]))
            self._readings.train_at_val.append(sum(recent) / len(recent))
            self._ask(trainer, None)
        self._spend(start)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer, pl_module, together=self._together)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._finish(trainer, pl_module, together=False)  # other ranks may be anywhere

    def _finish(self, trainer: Trainer, pl_module: LightningModule, *, together: bool) -> None:
        if self._sample is not None:
            self._sample.stop_listening()
            self._sample = None
        if self._loss is not None:  # of a step that did not come to its end
            self._losses.add(self._loss)
            self._batches += 1
            self._loss = None
        if not self._batches or self.report is not None:
            return
        if self._losses:
            self._read_losses(trainer, pl_module, together=together)
            self._ask(trainer, None, alone=self._together and not together)
        seconds = time.perf_counter() - self._began
        self.report = report_of(
            self._asked, self._evidence(trainer), module=pl_module, seconds=seconds, overhead=self.overhead
        )
        self._batch = None
        write_report(trainer, self.report, "health")


def _read_now(loss: Tensor) -> float:
    """Return a value that lies in the host's memory; this is no read from a device, and not counted as one."""
    loss = loss.detach()
    return float((loss.float() if loss.dtype is torch.bfloat16 else loss).numpy())


def _planned(trainer: Trainer) -> float:
    per_epoch = trainer.num_training_batches / max(1, trainer.accumulate_grad_batches)
    by_epochs = per_epoch * trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else math.inf
    return min(by_epochs, trainer.max_steps) if trainer.max_steps > 0 else by_epochs
