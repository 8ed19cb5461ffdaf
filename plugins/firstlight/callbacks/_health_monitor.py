"""HealthMonitor: the checks that watch a run."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, ClassVar, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import GradClipAlgorithmType, rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from firstlight._gradients import norms_of
from firstlight._require import require
from firstlight.callbacks._health_readings import Readings
from firstlight.callbacks._report_files import write_report
from firstlight.checks import WATCH_CHECKS, Check, Finding, Severity
from firstlight.preflight import ActivationWatch, PreflightReport, first_nonfinite, report_of

_REPORT_EVERY = 50  # steps: losses wait on the device until then
_ASK_EVERY = 200  # steps between two looks at all checks
_SAMPLE_EVERY = 10  # steps, at least
_FIRST = (0, 10)  # steps that are sampled whatever it costs: most faults show here


@final
class HealthMonitor(Callback):
    """Watch a run: losses at every step, layers at as many steps as ``budget`` allows; say what goes wrong, once.

    Losses stay on the device and are read together. At a sampled step it also reads activations (units without slope,
    saturation), gradients and updates. It adds up its own time and does not sample while that is above ``budget`` of
    the run so far. A loss that is not finite is found at once on a CPU, and with the next read on a GPU; the batch is
    run again on a copy, and the first module to show it is named.

    Role: observer.
    Reads: losses, activations, gradients and weights. Writes: ``health.json`` and ``health.html`` in the run folder at
    the end or at an exception, if the Trainer has a logger. Logs: ``check/<code>``, 1 at the step at which a check
    first finds something.

    Args:
        checks: what to ask; default: all that watch. A code such as ``"FL613"`` names one.
        budget: share of the run's time that it may take, in (0, 1).

    Raises:
        ValueError: an unknown code; a budget out of range.

    Under sharded strategies it watches the losses only. Activations of compiled nets are not seen.
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
        self._forget()

    def _forget(self) -> None:
        self._readings = Readings()
        self._losses: list[Tensor | float] = []
        self._loss: float | None = None  # of this batch, if its reading waits for nothing
        self._findings: dict[str, Finding] = {}
        self._own_seconds = self._last_cost = 0.0
        self._began = self._forward_began = time.perf_counter()
        self._forward = math.inf  # seconds that a step takes to its loss when nobody listens, of the last one before
        self._watch: ActivationWatch | None = None
        self._before: dict[str, Tensor] = {}
        self._sample: dict[str, Any] = {}
        self._batches = self._ask_at = 0
        self._batch: Any = None
        self._layers = False

    @property
    def overhead(self) -> float:
        """Share of the time since the start of training that this callback took."""
        return self._own_seconds / max(time.perf_counter() - self._began, 1e-9)

    @property
    def findings(self) -> list[Finding]:
        """What has been found so far, in the order in which it showed."""
        return list(self._findings.values())

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
        clip = trainer.gradient_clip_val
        by_norm = trainer.gradient_clip_algorithm != GradClipAlgorithmType.VALUE
        self._clip = float(clip) if clip and by_norm else None
        self._began = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch = batch
        turn = self._batches % _SAMPLE_EVERY
        if turn == 0 and self._layers:
            now = time.perf_counter()
            affordable = self._own_seconds + self._last_cost <= self.budget * (now - self._began)
            if affordable or self._batches in _FIRST:
                self._sample = {"seconds": 0.0}
                self._watch = ActivationWatch(pl_module)
                self._watch.begin()
                self._spend(now)
                self._forward_began = time.perf_counter()
        elif turn == _SAMPLE_EVERY - 1:
            self._forward_began = time.perf_counter()

    def _spend(self, start: float) -> None:
        spent = time.perf_counter() - start
        self._own_seconds += spent
        if self._sample:
            self._sample["seconds"] += spent

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        start = time.perf_counter()
        if self._watch is not None:
            listened = start - self._forward_began
            self._sample["activations"] = self._watch.end()
            self._watch = None
            start -= max(0.0, listened - self._forward)  # to listen takes time, too
        elif self._batches % _SAMPLE_EVERY == _SAMPLE_EVERY - 1:
            self._forward = start - self._forward_began
        if self._on_cpu and loss.numel() == 1:  # self.manual_backward takes others too
            # Nothing waits for it, and before the step the weights are still those that made this loss.
            self._loss = _read_now(loss)
            if not math.isfinite(self._loss) and self._readings.nonfinite_step is None:
                self._readings.nonfinite_step = self._readings.steps + len(self._losses)
                self._readings.nonfinite_where = first_nonfinite(pl_module, self._batch, trainer)
        self._spend(start)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if not self._sample:
            return
        start = time.perf_counter()
        named = {n: p for n, p in pl_module.named_parameters() if p.requires_grad and p.grad is not None}
        held = {id(p) for group in optimizer.param_groups for p in group["params"] if group["lr"] != 0}
        named = {name: p for name, p in named.items() if id(p) in held and not p.grad.is_sparse}  # type: ignore[union-attr]
        if named:
            names, owners = list(named), list(named.values())
            gradients = norms_of([p.grad for p in owners])  # type: ignore[misc]
            sizes = norms_of([p.detach() for p in owners])
            self._sample.setdefault("steps", []).append((names, gradients, sizes))
            self._sample["rate"] = max(float(group["lr"]) for group in optimizer.param_groups)
            self._before |= {name: p.detach().clone() for name, p in named.items()}
        self._spend(start)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        start = time.perf_counter()
        self._batches += 1
        if self._loss is not None and not self._several:
            self._losses.append(self._loss)
        else:
            loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
            if isinstance(loss, Tensor) and loss.numel() == 1:
                # a copy: the memory of a compiled graph's output is used again
                self._losses.append(_read_now(loss) if self._on_cpu else loss.detach().clone())
        self._loss = None
        if self._sample:
            self._take_sample(pl_module)
        if len(self._losses) >= _REPORT_EVERY or self._batches <= 2:
            self._read(trainer, pl_module)
        self._spend(start)
        if self._sample:
            self._last_cost, self._sample = self._sample["seconds"], {}

    def _take_sample(self, pl_module: LightningModule) -> None:
        if self._watch is not None:  # no backward pass came: manual optimization, or no loss
            self._sample["activations"] = self._watch.end()
            self._watch = None
        if not self._before:
            return
        now = dict(pl_module.named_parameters())
        names = list(self._before)
        changes = torch._foreach_sub([now[name].detach() for name in names], list(self._before.values()))
        self._sample["changes"] = (names, norms_of(changes))
        self._before = {}
        self._read_sample(now)

    def _read_sample(self, now: dict[str, Any]) -> None:
        """Read the sample: a handful of numbers a tensor, in one go."""
        steps = self._sample.get("steps", [])
        names, moved = self._sample["changes"]
        flat = torch.cat([tensor.double() for _, g, s in steps for tensor in (g, s)] + [moved.double()]).tolist()
        readings, sizes, position = self._readings, {}, 0
        total = 0.0
        for of_step, gradients, _ in steps:
            count = len(gradients)
            norms, lengths = flat[position : position + count], flat[position + count : position + 2 * count]
            position += 2 * count
            total += sum(norm**2 for norm in norms)
            # a bias before a norm layer has a gradient of rounding errors only, and need not move
            least = 1e-5 * max((norm for norm in norms if math.isfinite(norm)), default=0.0)
            for name, norm, length in zip(of_step, norms, lengths, strict=True):
                sizes[name] = length
                if norm > least:
                    readings.reached.add(name)
                # beside a head or a branch that starts at zero, and is still there, all other gradients look small
                if now[name].ndim >= 2 and length > 1e-3 * now[name].numel() ** 0.5 and math.isfinite(norm):
                    readings.relative[name] = norm / length
        if self._clip is not None and total > 0 and math.isfinite(total):
            readings.clipped.append(min(1.0, self._clip / math.sqrt(total)))
        ratios = []
        readings.peak_rate = max(readings.peak_rate, self._sample["rate"])
        # in a warm-up or a trough updates are short by intent
        in_full = self._sample["rate"] > 0.1 * readings.peak_rate
        for name, change in zip(names, flat[position:], strict=True):
            if change != 0:
                readings.moved.add(name)
            elif in_full and name in readings.reached:
                readings.still[name] = readings.still.get(name, 0) + 1
            if sizes[name] > 1e-3 * now[name].numel() ** 0.5:
                ratios.append(change / sizes[name])
        if ratios and in_full:
            readings.ratios.append(sorted(ratios)[len(ratios) // 2])
        seen = self._sample.get("activations")
        if seen is not None and seen.samples:
            shares = [*seen.dead.values(), *seen.saturated.values()]
            values = iter(torch.stack(shares).tolist())
            readings.dead = {name: next(values) for name in seen.dead}
            readings.saturated = {name: next(values) for name in seen.saturated}
            readings.activation_samples = seen.samples

    def _read(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the losses that wait on the device, and ask the checks if it is time."""
        finite = self._read_losses(trainer, pl_module)
        due = self._readings.steps >= self._ask_at and self.overhead <= self.budget
        if due or (not finite and "FL611" not in self._findings):
            self._ask_at = self._readings.steps + _ASK_EVERY
            self._ask(trainer, pl_module)

    def _read_losses(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Read the losses that wait on the device, together; return whether all of them are finite."""
        if not self._losses:
            return True
        waiting = [loss for loss in self._losses if isinstance(loss, Tensor)]
        if waiting:
            values = torch.stack([loss.reshape(()).float() for loss in waiting]).tolist()
        else:
            values = [loss for loss in self._losses if isinstance(loss, float)]
        first, self._losses = self._readings.steps, []
        self._readings.see_losses(values)
        bad = next((index for index, value in enumerate(values) if not math.isfinite(value)), None)
        if bad is not None and self._readings.nonfinite_step is None:
            self._readings.nonfinite_step = first + bad
            self._readings.nonfinite_where = first_nonfinite(pl_module, self._batch, trainer)
        return bad is None

    def _ask(self, trainer: Trainer, pl_module: LightningModule | None) -> None:
        planned = _planned(trainer)
        evidence = self._readings.evidence(several_optimizers=self._several, planned=planned)
        for check in self._asked:
            if check.missing(evidence) is not None:
                continue
            for finding in check(evidence):
                known = self._findings.get(finding.code)
                self._findings[finding.code] = finding
                if known is None or known.severity < finding.severity:
                    self._say(trainer, pl_module, finding)

    def _say(self, trainer: Trainer, pl_module: LightningModule | None, finding: Finding) -> None:
        if finding.severity >= Severity.WARNING:
            rank_zero_warn(f"step {trainer.global_step}: {finding}; {finding.advice}")
        if pl_module is not None and trainer.training:
            pl_module.log(f"check/{finding.code}", torch.ones((), device=pl_module.device), batch_size=1)

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
        self._finish(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._finish(trainer, pl_module)

    def _finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._watch is not None:
            self._watch.end()
            self._watch = None
        if not self._batches or self.report is not None:
            return
        if self._losses:
            self._read_losses(trainer, pl_module)
            self._ask(trainer, None)
        evidence = self._readings.evidence(several_optimizers=self._several, planned=_planned(trainer))
        self.report = report_of(
            self._asked, evidence, module=pl_module, seconds=time.perf_counter() - self._began, overhead=self.overhead
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
