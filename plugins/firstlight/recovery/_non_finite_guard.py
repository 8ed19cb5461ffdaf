"""NonFiniteGuard: a step whose loss or gradient is not finite leaves no trace, or ends the run on all ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Literal, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from firstlight._gradients import gradients, norms_of
from firstlight._require import require
from firstlight._run_folder import run_folder
from firstlight.recovery._culprit import culprit_of
from firstlight.recovery._epoch_values import metric_states, set_metric_states
from firstlight.recovery._exact_resume import ExactResume
from firstlight.recovery._replay import save_batch
from firstlight.recovery._snapshot import Snapshot

_SAID = 3  # skipped steps that are told one by one, and whose batches are kept


@final
class NonFiniteGuard(Callback):
    """Leave out an optimizer step whose loss or gradient is not finite, roll back, or stop; all ranks alike.

    The step leaves no trace, whatever the policy: weights, moments and decay, BatchNorm's running statistics and all
    other buffers, sums of ``self.log`` and states of metrics are those before its first batch; averages
    (:class:`WeightEMA`) and clip statistics (:class:`GradientClipping`) never see it. Steps are counted on and
    schedules advance, as they are functions of the step.

    * ``"skip"`` goes on with the next batch.
    * ``"rollback"`` also puts weights and optimizers back to the last good snapshot, at most ``snapshot_every_n_steps``
      old, and multiplies every rate by ``lr_factor`` from then on. Data and step count go on.
    * ``"stop"`` raises, before anything was changed, so that a checkpoint of the exception is good.

    Skipping cannot mend weights that are not finite, or a run that has come apart: after ``patience`` bad steps in a
    row the run ends with an error, and it does at once where weights are not finite and there is nothing to go back to.

    Under DDP the ranks agree without a message: a rank whose loss is not finite makes its own gradients so, before they
    are averaged, and then all hold the same. The report names the ranks, the first module whose output is not finite,
    and, with :class:`ExactResume`, the samples; the batch is saved for replay beside it, ``nonfinite/*.pt`` in the run
    folder, and loads with ``torch.load(weights_only=True)``.

    It reads one number from the device per optimizer step, as ``GradientClipping(on_nonfinite="skip")`` does, since
    the step must wait for the answer; a bad step reads more. Copies of buffers and metric states are made on the
    device at each step.

    Role: actor; it undoes steps.
    Reads: losses, gradients. Writes: gradients; at a bad step, all of the above. Logs: nothing; the numbers are
    ``callback.skipped_steps`` and ``callback.rollbacks``, the report ``nonfinite.json`` in the run folder.

    Args:
        policy: see above.
        patience: bad steps in a row that end the run.
        snapshot_every_n_steps: of ``"rollback"``; a snapshot costs a copy of weights and moments to the host.
        lr_factor: of ``"rollback"``, in (0, 1].

    Raises:
        ValueError: an argument out of range; ``"rollback"`` under a strategy that shards the state.
        FloatingPointError: the run ends, with rank, place and advice; the same words on all ranks.

    Under 16-mixed precision the scaler already leaves out steps whose gradient overflows, which is no fault; this
    stands aside with one line. ``GradientClipping(on_nonfinite=...)`` may be on as well: it then finds no gradient.
    """

    role: ClassVar[str] = "actor"

    def __init__(
        self,
        policy: Literal["skip", "rollback", "stop"] = "skip",
        *,
        patience: int = 10,
        snapshot_every_n_steps: int = 100,
        lr_factor: float = 0.5,
    ) -> None:
        known = ("skip", "rollback", "stop")
        require(policy in known, "policy", policy, f"one of {', '.join(known)}")
        require(patience >= 1, "patience", patience, "one or more steps")
        require(snapshot_every_n_steps >= 1, "snapshot_every_n_steps", snapshot_every_n_steps, "one or more steps")
        require(0 < lr_factor <= 1, "lr_factor", lr_factor, "above 0 and at most 1")
        self.policy = policy
        self.patience = patience
        self.snapshot_every_n_steps = snapshot_every_n_steps
        self.lr_factor = lr_factor
        self._handles: list[Any] = []
        self._forget()

    def _forget(self) -> None:
        self.skipped_steps = self.rollbacks = 0
        self.events: list[dict[str, Any]] = []
        self._rate = 1.0  # product of the factors of all rollbacks
        self._in_a_row = 0
        self._aside = True
        self._snapshot: Snapshot | None = None
        self._loss: Tensor | None = None  # the loss of this rank's window, as a flag: 0, or NaN
        self._before: dict[str, Any] = {}
        self._bad = False  # the step that is being made
        self._batch: Any = None
        self._batch_idx = 0

    def state_dict(self) -> dict[str, Any]:
        return {"skipped_steps": self.skipped_steps, "rollbacks": self.rollbacks, "rate": self._rate}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped_steps, self.rollbacks = int(state_dict["skipped_steps"]), int(state_dict["rollbacks"])
        self._rate = float(state_dict["rate"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._forget()  # a checkpoint, if there is one, is loaded after this

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        plain = isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy))
        require(plain or self.policy != "rollback", "policy", self.policy, "skip or stop where the state is sharded")
        self._aside = getattr(trainer.precision_plugin, "scaler", None) is not None
        if self._aside:
            rank_zero_warn("NonFiniteGuard stands aside under 16-mixed: the scaler leaves out steps that overflow")
            return
        for optimizer in trainer.optimizers if self.policy == "rollback" else ():
            self._lower_rates_of(optimizer)

    def _lower_rates_of(self, optimizer: Optimizer) -> None:
        """Multiply the rates for the time of a step: schedulers of any kind keep their own."""
        rates: list[Any] = []

        def lower(*_: Any) -> None:
            rates[:] = [group["lr"] for group in optimizer.param_groups]
            if self._rate != 1:
                for group in optimizer.param_groups:
                    group["lr"] = group["lr"] * self._rate

        def restore(*_: Any) -> None:
            if self._rate != 1:
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate

        self._handles += [optimizer.register_step_pre_hook(lower), optimizer.register_step_post_hook(restore)]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._aside:
            return
        self._batch, self._batch_idx = batch, batch_idx
        if self._before:
            return  # inside an accumulation window
        if self.policy == "rollback" and (
            self._snapshot is None or trainer.global_step - self._snapshot.step >= self.snapshot_every_n_steps
        ):
            taken = Snapshot(trainer, pl_module)
            self._snapshot = taken if taken.is_good else self._snapshot
        self._before = {
            "buffers": [buffer.detach().clone() for buffer in pl_module.buffers()],
            "metrics": metric_states(pl_module),
            "logged": _logged(trainer),
            "batches": batch_idx,
        }

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self._aside:
            return
        flag = loss.detach() * 0  # 0, and NaN where the loss is not finite
        self._loss = flag if self._loss is None else self._loss + flag
        if loss.requires_grad:
            # Into the gradient, and so, by DDP's own average, to all ranks; g + 0 is g.
            loss.register_hook(lambda gradient: gradient + flag)  # type: ignore[no-untyped-call]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._aside:
            return
        owners, grads = gradients(optimizer)
        if not grads:
            return
        total = torch.linalg.vector_norm(norms_of(grads).double())
        if trainer.world_size == 1 and self._loss is not None:
            total = total + self._loss.to(total.device, total.dtype)  # where no parameter got a share of it
        if bool(torch.isfinite(total)):
            return
        if not self._bad:
            self._bad = True
            self._tell(trainer, pl_module)
        for parameter in owners:
            parameter.grad = None  # the optimizer passes over it: no update, no decay, no trace in its moments

    def _tell(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write down a bad step, on all ranks together; raise if the run is to end."""
        self.skipped_steps += 1
        self._in_a_row += 1
        mine = bool(torch.isfinite(self._loss)) if self._loss is not None else True
        finite = [mine]
        if trainer.world_size > 1:
            finite = [True] * trainer.world_size
            torch.distributed.all_gather_object(finite, mine)
        ranks = [rank for rank, good in enumerate(finite) if not good]
        self._undo(trainer, pl_module)
        keep = len(self.events) < _SAID
        samples = self._samples(trainer)
        event: dict[str, Any] = {
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "batch": self._batch_idx,
            "what": "loss" if ranks else "gradient",
            "ranks": ranks,
            "where": culprit_of(pl_module, self._batch, self._batch_idx) if keep else "",
            "samples": samples,
        }
        weights = next((n for n, p in pl_module.named_parameters() if not bool(torch.isfinite(p).all())), None)
        folder = Path(run_folder(trainer)) / "nonfinite"
        if keep and (trainer.global_rank in ranks or (not ranks and trainer.is_global_zero)):
            saved = {"batch": self._batch, "samples": samples, "rank": trainer.global_rank}
            saved |= {key: event[key] for key in ("step", "epoch")} | {"batch_idx": self._batch_idx}
            event["saved"] = save_batch(folder / f"step{trainer.global_step}-rank{trainer.global_rank}.pt", saved)
        self.events.append(event)
        if trainer.is_global_zero:
            _write(folder.with_suffix(".json"), self.events)
        what = _words(event, trainer.world_size)
        if self.policy == "stop":
            raise FloatingPointError(f"{what}; look at the inputs of this batch, or lower the rate")
        if weights is not None and self._snapshot is None:
            raise FloatingPointError(f"{what}; the weights are not finite ({weights}): resume from a good checkpoint")
        if self._in_a_row >= self.patience:
            raise FloatingPointError(f"{what}; it is the {self._in_a_row}th bad step in a row, so the run ends")
        if self.skipped_steps <= _SAID:
            done = "the run goes back" if self.policy == "rollback" else "the step is left out"
            rank_zero_warn(f"{what}; {done} ({self.skipped_steps} so far)")

    def _samples(self, trainer: Trainer) -> list[Any]:
        exact = next((c for c in trainer.callbacks if isinstance(c, ExactResume)), None)  # type: ignore[attr-defined]
        return exact.sample_indices(self._batch_idx) if exact is not None else []

    @torch.no_grad()
    def _undo(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for buffer, before in zip(pl_module.buffers(), self._before["buffers"], strict=True):
            buffer.copy_(before)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._aside or (pl_module.automatic_optimization and trainer.fit_loop._should_accumulate()):
            return
        if self._bad:
            set_metric_states(pl_module, self._before["metrics"])
            _restore_logged(trainer, self._before["logged"])
            if self.policy == "rollback":
                assert self._snapshot is not None
                self._snapshot.put_back(trainer, pl_module)
                self.rollbacks += 1
                self._rate *= self.lr_factor
        else:
            self._in_a_row = 0
        self._before, self._loss, self._bad = {}, None, False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._lift()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._lift()

    def _lift(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._before, self._batch, self._loss = [], {}, None, None


def _logged(trainer: Trainer) -> dict[str, tuple[dict[str, Tensor], bool]]:
    """Return the sums of the epoch by key: tensors that Lightning replaces and does not change."""
    results = trainer.fit_loop.epoch_loop._results
    return {
        key: ({name: getattr(result, name) for name in result._defaults}, result.has_reset)
        for key, result in results.items()
        if result.is_tensor and result.meta.on_epoch
    }


def _restore_logged(trainer: Trainer, before: dict[str, tuple[dict[str, Tensor], bool]]) -> None:
    """Put the sums back; what the bad step logged first begins anew."""
    for key, result in trainer.fit_loop.epoch_loop._results.items():
        if not (result.is_tensor and result.meta.on_epoch):
            continue
        sums, was_reset = before.get(key, ({}, True))
        for name, default in result._defaults.items():
            setattr(result, name, default.to(getattr(result, name).device) if was_reset else sums[name])


def _words(event: dict[str, Any], world_size: int) -> str:
    where = f" (first in {event['where']})" if event["where"] else ""
    ranks = f" of rank {', '.join(map(str, event['ranks']))}" if world_size > 1 and event["ranks"] else ""
    saved = f"; the batch is in {event['saved']}" if event.get("saved") else ""
    return (
        f"step {event['step']}, epoch {event['epoch']}, batch {event['batch']}: "
        f"the {event['what']}{ranks} is not finite{where}{saved}"
    )


def _write(path: Path, events: list[dict[str, Any]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(events, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        rank_zero_warn(f"{path} could not be written: {error}")
