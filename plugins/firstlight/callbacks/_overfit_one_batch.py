"""OverfitOneBatch: can this set-up memorize one batch?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import nn

from firstlight._batch import size_of
from firstlight._require import require, said_by
from firstlight._rng import isolated_rng
from firstlight.callbacks._overfit_trial import Goal, Trial, labels_fault, run_trial

_REFERENCES = (1e-3, 1e-2)  # rates of the reference Adam: one for nets of any size, one for small ones
# Fractions of the reducible loss: a trial ends early at the first; at its end it must be below the second. In between
# lie set-ups that are slow but sound (AdamW at 3e-3 on a net of 200 weights: 0.054 after 300 steps); of the faults,
# probabilities given as logits leave at least 0.45.
#
# Contrastive, adversarial and user-written losses have no floor that is known here: they must fall by a fifth.
_SOON, _ENOUGH = Goal(left=0.025, fall=0.5), Goal(left=0.10, fall=0.2)
_HALFWAY = Goal(left=0.5, fall=0.1)


@dataclass(frozen=True)
class OverfitResult:
    """The verdict, and what it rests on.

    ``passed`` is ``None`` if the probe could not run; ``cause`` then says why. Losses are those of the task, without
    penalties; ``floor`` is the lowest value that they could reach on the batch, ``None`` if it is not known.
    """

    passed: bool | None
    initial: float | None = None
    final: float | None = None
    floor: float | None = None
    steps: int = 0
    cause: str | None = None

    def __str__(self) -> str:
        """Say the verdict in one line."""
        if self.passed is None:
            return f"OverfitOneBatch skipped: {self.cause}"
        verdict = "passed" if self.passed else "FAILED"
        loss = "" if self.initial is None else f": loss {self.initial:.4g} -> {self.final:.4g}"
        floor = "" if self.floor is None or not loss else f" (floor {self.floor:.4g})"
        steps = f" in {self.steps} steps" if loss else ""
        return f"OverfitOneBatch {verdict}{loss}{floor}{steps}" + (f"; {self.cause}" if self.cause else "")


@final
class OverfitOneBatch(Callback):
    """Before the first step, train a copy of the module on the first batch: a set-up that can learn memorizes it.

    The loss is judged against its own floor (label smoothing, soft targets and class weights have one above zero): at
    most 10 % of what can be reduced may be left. A loss whose floor is not known must fall by a fifth. On the copy
    dropout, penalties and weight decay are off; the module's own optimizer runs, warmed up and cooled down. Where it
    fails, a reference Adam tries the same batch, which tells a fault of the optimizer from one of the model or the
    loss; an optimizer that came halfway where the reference arrives passes as slow. The probe also fails if some
    trainable parameter gets no gradient at all, though the rest may memorize the batch without it.

    Role: probe; weights, buffers, optimizer state, random numbers and the position in the data are the same after as
    before. Reads: the first batch. Writes: nothing. Logs: nothing; the verdict is ``callback.result`` and one line.

    The copy sees plain values of the Trainer, such as ``self.trainer.max_epochs``, and no loggers or optimizers.

    Skipped, with the reason: on resume, under sharded strategies, manual optimization, several optimizers, LBFGS,
    ``dataloader_iter``, a batch of one with batch norm, a module that cannot be copied. Under DDP each rank tries its
    own batch and all must pass.

    Args:
        max_steps: at most so many optimizer steps; the trial ends as soon as it has passed.
        on_fail: raise, or warn and go on.

    Raises:
        RuntimeError: the set-up cannot memorize the batch and ``on_fail="raise"``; the message names the cause.
    """

    role: ClassVar[str] = "probe"

    def __init__(self, *, max_steps: int = 300, on_fail: Literal["raise", "warn"] = "raise") -> None:
        require(max_steps >= 20, "max_steps", max_steps, "20 or more")
        require(on_fail in ("raise", "warn"), "on_fail", on_fail, "'raise' or 'warn'")
        self.max_steps = max_steps
        self.on_fail = on_fail
        self.result: OverfitResult | None = None
        self._armed = self._peeks = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.result = None
        self._armed = self._peeks = True

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        # The sanity check comes before the first training batch, and labels out of range end the process in it.
        if not (trainer.sanity_checking and self._peeks) or _reason_to_skip(trainer, pl_module, batch):
            return
        self._peeks = False
        with isolated_rng():
            fault = labels_fault(trainer, pl_module, batch)
        if fault is not None:
            self.result = OverfitResult(False, cause=f"{fault} (in the validation data)")
        self._tell(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self._armed:
            return
        self._armed = False
        reason = _reason_to_skip(trainer, pl_module, batch)
        self.result = OverfitResult(None, cause=reason) if reason else self._probe(trainer, pl_module, batch)
        self._tell(trainer)

    def _tell(self, trainer: Trainer) -> None:
        """Say the verdict if there is one, the same on all ranks: whether to go on is for all of them."""
        failed = self.result is not None and self.result.passed is False
        passed = trainer.strategy.reduce_boolean_decision(not failed, all=True)
        if passed:
            if self.result is not None:
                rank_zero_info(str(self.result))
            return
        message = str(self.result if failed else "OverfitOneBatch FAILED on another rank")
        if self.on_fail == "raise":
            raise RuntimeError(message)
        rank_zero_warn(message)

    def _probe(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> OverfitResult:
        settings = {"max_steps": self.max_steps, "soon": _SOON}
        with isolated_rng(), torch.enable_grad():
            try:
                trial = run_trial(trainer, pl_module, batch, **settings)  # type: ignore[arg-type]
            except (AttributeError, NotImplementedError, TypeError, RuntimeError) as error:
                # A module that needs its Trainer, or that cannot be copied, will say so in the real run if it is wrong.
                return OverfitResult(None, cause=f"the step does not run on a copy: {said_by(error)[:200]}")
            needs_reference = not _passes(trial) and _certain_cause(trial) is None
            references: list[Trial] = []
            for rate in _REFERENCES:
                # All ranks, or none: a trial has collectives of its own.
                if not trainer.strategy.reduce_boolean_decision(needs_reference, all=False):
                    break
                references.append(run_trial(trainer, pl_module, batch, reference=rate, **settings))  # type: ignore[arg-type]
                needs_reference = needs_reference and not references[-1].reached(_ENOUGH)
        return _judge(trial, references)


def _passes(trial: Trial) -> bool:
    return _certain_cause(trial) is None and trial.reached(_ENOUGH)


def _judge(trial: Trial, references: list[Trial]) -> OverfitResult:
    cause = None if _passes(trial) else _certain_cause(trial) or _likely_cause(trial, references)
    # Slow is no fault: the loss is on its way down, and a faster rate shows that there is nothing in it.
    slow = cause is not None and _certain_cause(trial) is None and trial.reached(_HALFWAY)
    slow = slow and any(reference.reached(_ENOUGH) for reference in references)
    passed = cause is None or slow
    losses = trial.losses
    last = [loss for loss in losses[-5:] if math.isfinite(loss)]
    return OverfitResult(
        passed,
        initial=losses[0] if losses else None,
        final=min(last) if last else (math.nan if losses else None),
        floor=trial.floor,
        steps=len(losses),
        cause=f"slowly; {cause}" if slow else cause,
    )


def _certain_cause(trial: Trial) -> str | None:
    """Name the cause that the trial itself shows, the most basic first."""
    if trial.error is not None:
        return trial.error
    if trial.disconnected:
        return "the loss has no gradient: it was detached, computed under no_grad, or rebuilt from numbers"
    if trial.learning_rates and not any(trial.learning_rates):
        return "the learning rate is 0"
    if trial.unreached:
        shown = ", ".join(trial.unreached[:3]) + (", ..." if len(trial.unreached) > 3 else "")
        return (
            f"no gradient reaches {len(trial.unreached)} trainable parameter(s) ({shown}): a detach() or no_grad on "
            "the way, or layers that the loss does not use; freeze them with requires_grad_(False) if that is meant"
        )
    if trial.misread is not None and (not trial.reached(_ENOUGH) or trial.falls_through):
        return trial.misread
    return None


def _likely_cause(trial: Trial, references: list[Trial]) -> str:
    """Name the cause that the comparison with the references suggests."""
    rates = ", ".join(f"{rate:.3g}" for rate in sorted(set(trial.learning_rates)))
    for reference in references:
        if reference.reached(_ENOUGH):
            return (
                f"the optimizer: {trial.optimizer} at learning rate {rates} does not get there, Adam at "
                f"{reference.learning_rates[0]:g} brings the same batch to {min(reference.losses[-5:]):.4g} in "
                f"{len(reference.losses)} steps"
            )
    if not math.isfinite(trial.losses[0]):
        return "the loss is not finite from the start: look for log(0), division by 0, overflow, non-finite inputs"
    if all(reference.losses[-1] > 1.1 * reference.losses[0] for reference in references):
        return "the task's loss grows under Adam too: the step minimizes something else; look at the sign of the loss"
    if not all(map(math.isfinite, trial.losses)):
        return "the loss becomes non-finite: look for log(0), division by 0, overflow"
    return (
        "neither its own optimizer nor Adam can memorize the batch: look at the labels (do they belong to these "
        "inputs, is each input given once?), the form of the loss, and a bottleneck in the model"
    )


def _reason_to_skip(trainer: Trainer, pl_module: LightningModule, batch: Any) -> str | None:
    if trainer.global_step > 0:
        return "the run was resumed"
    if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
        return f"{type(trainer.strategy).__name__} shards the model, and a shard cannot be copied"
    if is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True):
        return "training_step takes dataloader_iter: looking at a batch would take it away"
    if not pl_module.automatic_optimization:
        return "manual optimization: the step belongs to the module"
    if len(trainer.optimizers) != 1:
        return f"{len(trainer.optimizers)} optimizers"
    if isinstance(trainer.optimizers[0], torch.optim.LBFGS):
        return "LBFGS evaluates its closure several times a step"
    norms = any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in pl_module.modules())
    if norms and size_of(batch) == 1:
        return "batch norm needs more than one sample in a batch"
    return None
