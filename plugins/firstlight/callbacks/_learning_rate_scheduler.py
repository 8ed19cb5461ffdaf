"""LearningRateScheduler: a schedule for every parameter group, exact on resume."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, LearningRateFinder, Timer
from lightning.pytorch.core.optimizer import _init_optimizers_and_lr_schedulers
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from firstlight._require import require
from firstlight._shadows import Shadows
from firstlight.callbacks._batch_scaling import batch_scale
from firstlight.schedules import Schedule

_Group = dict[str, Any]


@final
class LearningRateScheduler(Callback):
    """Set the learning rate of every parameter group to its base rate times ``schedule``.

    The rate of a step is a function of the step alone: a run that was stopped anywhere and resumed has the rates of
    the unbroken one. Groups keep the ratios of their base rates; groups added later join at the current factor. The
    clock is ``trainer.global_step``, which under 16-mixed precision also counts the steps that the scaler skips; under
    manual optimization each optimizer has a clock of its own. What ``LearningRateFinder`` suggests becomes the base.

    Role: actor; it changes the learning rates and nothing else.
    Reads: ``trainer.global_step``; under manual optimization the steps of each optimizer.
    Writes: ``lr`` and ``initial_lr`` of the parameter groups, before the first step and after each one.
    Logs, at the Trainer's log steps: ``lr/<group name>``, the rate of the step just taken.

    Args:
        schedule: optimizer step to a factor of the base rate.
        total_steps: length of the run in optimizer steps; default: what the Trainer estimates.
        compose: what to do if ``configure_optimizers`` returns a scheduler too: ``None`` refuses, ``"multiply"``
            applies the factor on top of the scheduler's rate during each step only, so that it never sees the product.
        on_resume: base rates and length of the run from the code (``"config"``) or from the checkpoint.
        batch_scaling: how base rates follow the items per optimizer step (batch x processes x accumulation): in
            proportion (``"linear"``, for SGD) or by the root (``"sqrt"``, for Adam and its kin); default: not at all.
        reference_batch_size: items per optimizer step that the base rates were tuned with; goes with ``batch_scaling``.

    Raises:
        ValueError: a second scheduler and ``compose=None``; a schedule that needs the length of a run that has none;
            ``batch_scaling`` with a loader that tells no batch size, with ``LearningRateFinder``, or with an
            accumulation that changes.
    """

    role: ClassVar[str] = "actor"

    def __init__(
        self,
        schedule: Schedule,
        *,
        total_steps: int | None = None,
        compose: Literal["multiply"] | None = None,
        on_resume: Literal["config", "checkpoint"] = "config",
        batch_scaling: Literal["linear", "sqrt"] | None = None,
        reference_batch_size: int | None = None,
    ) -> None:
        require(isinstance(schedule, Schedule), "schedule", schedule, "a firstlight Schedule", error=TypeError)
        require(total_steps is None or total_steps >= 1, "total_steps", total_steps, "one or more optimizer steps")
        require(compose in (None, "multiply"), "compose", compose, "None or 'multiply'")
        require(on_resume in ("config", "checkpoint"), "on_resume", on_resume, "'config' or 'checkpoint'")
        require(batch_scaling in (None, "linear", "sqrt"), "batch_scaling", batch_scaling, "None, 'linear' or 'sqrt'")
        either = "one or more items per step, together with batch_scaling"
        together = (batch_scaling is None) == (reference_batch_size is None)
        positive = reference_batch_size is None or reference_batch_size >= 1
        require(together and positive, "reference_batch_size", reference_batch_size, either)
        self.schedule = schedule
        self.batch_scaling = batch_scaling
        self.reference_batch_size = reference_batch_size
        self.total_steps = total_steps
        self.compose = compose
        self.on_resume = on_resume
        self._loaded: dict[str, Any] = {}
        self._forget()

    def _forget(self) -> None:
        self._resolved: Schedule | None = None
        self._total: int | None = None
        self._scale = 1.0
        self._optimizers: list[Optimizer] = []
        self._bases: list[list[float]] = []
        self._written: dict[int, float] = {}  # by id of the group: what we wrote last, to notice other writers
        self._released: set[tuple[int, int]] = set()  # optimizer and group that somebody else took over
        self._applied: dict[int, float] = {}
        self._steps: list[int] = []  # steps of each optimizer, under manual optimization
        self._undo: list[Callable[[], None]] = []

    def state_dict(self) -> dict[str, Any]:
        bases, released = [list(rates) for rates in self._bases], [list(group) for group in sorted(self._released)]
        of_run = {"total": self._total, "scale": self._scale}
        return {"steps": list(self._steps), "bases": bases, "released": released, **of_run}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = dict(state_dict)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The optimizers exist and the checkpoint's have not been restored yet: the rates are those of the code.
        self._forget()
        if trainer.lr_scheduler_configs and self.compose is None:
            names = ", ".join(type(config.scheduler).__name__ for config in trainer.lr_scheduler_configs)
            raise ValueError(
                f"two writers of the learning rate: LearningRateScheduler and {names} from configure_optimizers; "
                "remove one of them, or pass compose='multiply'"
            )
        if self.compose and not pl_module.automatic_optimization:
            raise ValueError("compose='multiply' needs automatic optimization; remove one of the two schedulers")
        self._adopt(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loaded = self._loaded if trainer.global_step > 0 else {}  # LearningRateFinder loads states at step 0
        self._loaded = {}
        if trainer.global_step == 0:  # what a callback set since fit began counts
            self._optimizers = []
            self._adopt(trainer)
        self._bases = _found(trainer, pl_module) or self._bases
        self._released = {(index, number) for index, number in loaded.get("released", [])}
        if loaded.get("bases") and self.on_resume == "checkpoint":
            self._bases = [list(rates) for rates in loaded["bases"]]
        # Not earlier: asking for the length of the run builds the loaders, and a loader built before its state is
        # restored loses that state.
        self._resolve(trainer, loaded.get("total"))
        self._scale = self._batch_scale(trainer)
        if self.on_resume == "checkpoint":
            self._scale = loaded.get("scale", self._scale)
        if not pl_module.automatic_optimization:
            steps = loaded.get("steps") or [trainer.global_step // max(1, len(self._steps))] * len(self._steps)
            self._steps = list(steps)
            for index in range(len(self._steps)):
                self._count(index)
        if self.compose == "multiply":
            self._wrap_optimizer_step(trainer, pl_module)
            return
        self._announce_jump(trainer, loaded.get("total"))
        self._write(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        # Groups that joined since the last step (unfreezing), and other optimizers, must not take their first step at
        # the raw rate.
        if self.compose is None and (
            trainer.optimizers != self._optimizers
            or any(
                len(bases) != len(known.param_groups)
                for known, bases in zip(self._optimizers, self._bases, strict=True)
            )
        ):
            self._write(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer._logger_connector.should_update_logs:  # at every step, logging would cost more than all the rest
            for name, rate in self._rates(trainer):
                # A tensor on the host: a float would be copied to the device.
                pl_module.log(name, torch.tensor(rate, dtype=torch.float64), on_step=True, on_epoch=False)
        if self.compose is None:
            self._write(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._release()
        self._optimizers = []  # their state is large, and the callback may live on

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release()

    def _release(self) -> None:
        for undo in self._undo:
            undo()
        self._undo = []

    def _adopt(self, trainer: Trainer) -> None:
        """Take the rates of optimizers that were not there before as their base rates."""
        known = {id(optimizer): bases for optimizer, bases in zip(self._optimizers, self._bases, strict=False)}
        self._optimizers = list(trainer.optimizers)
        self._bases = [
            known.get(id(optimizer)) or [_base(group) for group in optimizer.param_groups]
            for optimizer in self._optimizers
        ]
        self._steps = (self._steps + [0] * len(self._optimizers))[: len(self._optimizers)]
        if self._undo and self.compose is None:  # under manual optimization: count the steps of the new ones
            self._release()
            for index in range(len(self._optimizers)):
                self._count(index)

    def _resolve(self, trainer: Trainer, checkpointed: int | None) -> None:
        batches = trainer.num_training_batches
        factors = _accumulation(trainer)
        accumulate = factors[0]
        per_epoch = None if math.isinf(batches) else math.ceil(batches / accumulate)
        self._resolved = self.schedule.resolve(steps_per_epoch=per_epoch, steps_per_batch=1.0 / accumulate)
        if len(set(factors)) > 1 and self._resolved != self.schedule:
            raise ValueError(
                f"{self.schedule} counts epochs or batches, and GradientAccumulationScheduler changes how many "
                "optimizer steps those are; give durations in steps or as fractions of the run"
            )
        self._total = self.total_steps
        if self.on_resume == "checkpoint" and checkpointed is not None:
            self._total = checkpointed
        if self._total is None and self._resolved.needs_total:
            self._total = _estimated_steps(trainer, self._resolved)
        warmup = getattr(self._resolved, "warmup", 0)
        if self._total is not None and isinstance(warmup, int) and warmup > self._total:
            rank_zero_warn(f"warm-up of {warmup} steps is longer than the run of {self._total}; the peak is its end")

    def _batch_scale(self, trainer: Trainer) -> float:
        if self.batch_scaling is None or self.reference_batch_size is None:
            return 1.0
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if any(isinstance(callback, LearningRateFinder) for callback in callbacks):
            raise ValueError("LearningRateFinder finds the rate of the batch that is there: leave batch_scaling out")
        factors = _accumulation(trainer)
        if len(set(factors)) > 1:
            raise ValueError(f"batch_scaling needs one batch for the whole run, and accumulation takes {factors}")
        return batch_scale(trainer, self.batch_scaling, self.reference_batch_size, factors[0])

    def _factor(self, trainer: Trainer, index: int) -> float:
        assert self._resolved is not None
        automatic = trainer.lightning_module.automatic_optimization
        step = trainer.global_step if automatic else self._steps[index]
        return self._scale * self._resolved.factor(step, self._total)

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.optimizers != self._optimizers:  # somebody put others in their place
            self._adopt(trainer)
        for index, optimizer in enumerate(trainer.optimizers):
            factor = self._factor(trainer, index)
            bases = self._bases[index]
            for number, group in enumerate(optimizer.param_groups):
                if number >= len(bases):
                    bases.append(_base(group))
                if self._is_ours(group, (index, number)):
                    rate = bases[number] * factor
                    group["initial_lr"] = bases[number]
                    _set_rate(group, rate)
                    self._written[id(group)] = rate

    def _is_ours(self, group: _Group, place: tuple[int, int]) -> bool:
        """Whether nobody else wrote the rate of ``group`` since we did; if someone has, it is theirs from now on."""
        last = self._written.get(id(group))
        if place in self._released:
            return False
        if last is None or isinstance(group["lr"], Tensor) or group["lr"] == last:
            return True
        self._released.add(place)
        rank_zero_warn(
            f"LearningRateScheduler: something else set the learning rate of group {group.get('name', '?')!r} to "
            f"{group['lr']:.3g} (the schedule had {last:.3g}); the schedule leaves this group alone from now on"
        )
        return False

    def _rates(self, trainer: Trainer) -> list[tuple[str, float]]:
        several = len(trainer.optimizers) > 1
        rates = []
        for index, optimizer in enumerate(trainer.optimizers):
            for number, group in enumerate(optimizer.param_groups):
                rate = self._applied.get(id(group), group["lr"])
                name = group.get("name", f"group_{number}")
                rates.append((f"lr/{index}/{name}" if several else f"lr/{name}", float(rate)))
        return rates

    def _count(self, index: int) -> None:
        def stepped(*_: object) -> None:
            self._steps[index] += 1

        self._undo.append(self._optimizers[index].register_step_post_hook(stepped).remove)

    def _announce_jump(self, trainer: Trainer, before: int | None) -> None:
        if before is None or self._total is None or before == self._total or not self._bases[0]:
            return
        old = float(trainer.optimizers[0].param_groups[0]["lr"])
        new = self._bases[0][0] * self._factor(trainer, 0)
        rank_zero_info(f"learning rate goes {old:.4g} -> {new:.4g} because total_steps went {before} -> {self._total}")

    def _wrap_optimizer_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Apply the factor during each optimizer step only: other schedulers never see the product."""
        inner = pl_module.optimizer_step

        def optimizer_step(epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            factor = self._factor(trainer, 0)
            groups = optimizer.param_groups
            undamped = [float(group["lr"]) for group in groups]
            for group, rate in zip(groups, undamped, strict=True):
                _set_rate(group, rate * factor)
                self._applied[id(group)] = rate * factor
            try:
                inner(epoch, batch_idx, optimizer, optimizer_closure)
            finally:
                for group, rate in zip(groups, undamped, strict=True):
                    _set_rate(group, rate)

        shadows = Shadows()
        shadows.put(pl_module, "optimizer_step", optimizer_step)
        self._undo.append(shadows.lift)


def _base(group: _Group) -> float:
    # A torch scheduler has already scaled "lr" and keeps the base rate here.
    return float(group["initial_lr"] if "initial_lr" in group else group["lr"])


def _set_rate(group: _Group, rate: float) -> None:
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)  # a compiled or captured optimizer holds on to the tensor
    else:
        group["lr"] = rate


def _found(trainer: Trainer, pl_module: LightningModule) -> list[list[float]] | None:
    """Return base rates with LearningRateFinder's suggestion; it sets every group to the one number that it found."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    several = any(len(optimizer.param_groups) > 1 for optimizer in trainer.optimizers)
    if not several or not any(isinstance(callback, LearningRateFinder) for callback in callbacks):
        return None
    # The module's attribute holds the suggestion by now: its own code says what that means for each group.
    fresh, _ = _init_optimizers_and_lr_schedulers(pl_module)
    return [[_base(group) for group in optimizer.param_groups] for optimizer in fresh]


def _accumulation(trainer: Trainer) -> list[int]:
    """Return how many batches make a step in each epoch of the run; one number if it is always the same."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if isinstance(callback, GradientAccumulationScheduler):
            epochs = max(callback.epochs[-1] + 1, trainer.max_epochs or 0)
            factors = [callback.get_accumulate_grad_batches(epoch) for epoch in range(epochs)]
            return factors if len(set(factors)) > 1 else factors[:1]
    return [int(trainer.accumulate_grad_batches)]


def _estimated_steps(trainer: Trainer, schedule: Schedule) -> int:
    """Return the length of the run in optimizer steps, or raise with the reason why it is not known."""
    batches, epochs, limit = trainer.num_training_batches, trainer.max_epochs, trainer.max_steps
    steps = math.inf
    if epochs not in (None, -1) and not math.isinf(batches):
        # Not the Trainer's own estimate: it does not see GradientAccumulationScheduler.
        factors = _accumulation(trainer)
        per_epoch = factors[:epochs] if len(factors) > 1 else factors * (epochs or 1)
        steps = sum(math.ceil(batches / accumulate) for accumulate in per_epoch)
    several = 1 if trainer.lightning_module.automatic_optimization else len(trainer.optimizers)
    dry = getattr(trainer, "fast_dev_run", False)  # it sets max_steps, and only asks whether the code runs
    if several > 1 and limit != -1 and limit < steps * several and not dry:
        why = f"max_steps={limit} counts the steps of all {several} optimizers; pass total_steps=, those of one, to"
    elif limit != -1 or not math.isinf(steps):
        return int(min(steps, math.inf if limit == -1 else limit))
    else:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        why = "max_epochs=-1 and max_steps=-1 set no end"
        if epochs not in (None, -1):
            why = "the train loader has no length"
        elif any(isinstance(callback, Timer) for callback in callbacks):
            why = "max_time ends it by the clock"
        why += "; set max_steps= on the Trainer, or pass total_steps= to"
    raise ValueError(
        f"{type(schedule).__name__} needs the length of the run, and it is not known: {why} LearningRateScheduler"
    )
