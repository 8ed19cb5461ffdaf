"""ObjectiveModule: named loss terms, weighted and added up, with penalties, metrics, logging and an optimizer."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import AdamW
from torchmetrics import Metric, MetricCollection

from firstlight._require import did_you_mean, require
from firstlight.modules._batch import input_and_target, size_of
from firstlight.modules._exportable import Exportable
from firstlight.modules._recorded import recorded
from firstlight.modules._shared import Stage, check_optimizer, log_values, optimizer_of
from firstlight.schedules import Schedule


class ObjectiveModule(LightningModule, ABC):
    """A LightningModule whose loss is a weighted sum of named terms; write :meth:`loss_terms`, the rest is here.

    Logs: ``<stage>/loss`` (the weighted sum; in training with penalties), ``<stage>/loss/<term>`` (unweighted),
    ``train/penalty/<name>`` (weighted), ``<stage>/<metric>``, with the stages ``train``, ``val`` and ``test``. Training
    values are logged per step and stay on the device; they are read once per ``log_every_n_steps``.

    Constructor arguments, a subclass's own included, are stored as plain specs, and a spec
    ``{"class_path": ..., "init_args": {...}}`` may stand wherever an object is expected: checkpoints load with
    ``torch.load(weights_only=True)`` and ``load_from_checkpoint`` brings back the same loss with the same arguments.

    Args:
        penalties: modules that map a module to a weighted scalar, e.g. ``L2Penalty(1e-4)``; training only.
        metrics: torchmetrics by name, updated by :meth:`update_metrics` in validation and test.
        optimizer: from parameter groups to an optimizer; default AdamW at 1e-3. The groups are those of
            :func:`firstlight.optimizers.param_groups`: biases, norms and embeddings do not decay.
        loss_weights: factor by term, a number or a schedule of the optimizer step (of the training batch under manual
            optimization); 1 where not given. Outside ``fit`` there is no step to be at, and a schedule counts as 1.

    Raises:
        ValueError: a weight for a term that :meth:`loss_terms` does not return; a term that is not a scalar; a schedule
            that needs the length of a run that has none.
        TypeError: an argument that is neither the object asked for nor its spec.
    """

    #: Whether training on one batch alone brings each loss in a step to its lowest value. Where it does not, because
    #: terms pull against each other or inputs keep changing, ``OverfitOneBatch`` asks that the whole loss falls.
    reaches_floor: ClassVar[bool] = True

    @recorded
    def __init__(
        self,
        *,
        penalties: Sequence[nn.Module] = (),
        metrics: Mapping[str, Metric] | None = None,
        optimizer: OptimizerCallable | None = None,
        loss_weights: Mapping[str, float | Schedule] | None = None,
    ) -> None:
        super().__init__()
        for penalty in penalties:
            require(isinstance(penalty, nn.Module), "penalties", penalty, "modules such as L2Penalty", error=TypeError)
        self.penalties = nn.ModuleDict(_by_name(penalties))
        for name, metric in (metrics or {}).items():
            require(isinstance(metric, Metric), f"metrics[{name!r}]", metric, "a torchmetrics.Metric", error=TypeError)
        self.stage_metrics = nn.ModuleDict()
        if metrics:
            for stage in ("val", "test"):
                clones: dict[str, Metric | MetricCollection] = {
                    name: metric.clone() for name, metric in metrics.items()
                }
                self.stage_metrics[stage] = MetricCollection(clones, prefix=f"{stage}/")
        check_optimizer("optimizer", optimizer)
        self._make_optimizer = optimizer or functools.partial(AdamW, lr=1e-3)
        self.loss_weights = dict(loss_weights or {})
        for name, weight in self.loss_weights.items():
            ok = isinstance(weight, (int, float, Schedule))
            require(ok, f"loss_weights[{name!r}]", weight, "a number or a Schedule", error=TypeError)
        self._resolved: dict[str, tuple[Schedule, int | None]] = {}  # by term: its schedule in steps, and their number

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = recorded(cls.__init__)  # type: ignore[method-assign]

    @abstractmethod
    def loss_terms(self, batch: Any) -> dict[str, Tensor]:
        """Return the named terms of the loss on ``batch``, each a scalar, unweighted."""

    def batch_size(self, batch: Any) -> int:
        """Return the number of samples in ``batch``: the length of the first tensor in it."""
        return size_of(batch)

    def export_model(self, batch: Any) -> Exportable:
        """Return what ``export`` writes of this module: here :meth:`forward`, on the input of ``batch``.

        Override it where another part is of use alone, or takes other inputs.

        Raises:
            NotImplementedError: the module has no :meth:`forward`.
        """
        if type(self).forward is LightningModule.forward:
            name = type(self).__qualname__
            raise NotImplementedError(f"{name} does not say what to export: write forward(x) or export_model(batch)")
        return Exportable(self, (input_and_target(batch)[0],))

    def objective(self, terms: Mapping[str, Tensor], *, stage: Stage, batch_size: int) -> Tensor:
        """Add up ``terms`` with their weights, in training with the penalties, and log all of it.

        Shapes: scalars to ``[]``.
        """
        self._check(terms)
        values = {f"{stage}/loss/{name}": term for name, term in terms.items()}
        total = torch.stack([self._weight(name) * term for name, term in terms.items()]).sum()
        if stage == "train":
            for name, penalty in self.penalties.items():
                values[f"train/penalty/{name}"] = cost = penalty(self)
                total = total + cost
        values[f"{stage}/loss"] = total
        log_values(self, values, stage=stage, batch_size=batch_size)
        return total

    def update_metrics(self, output: Any, target: Any, *, stage: Stage) -> None:
        """Update the metrics of ``stage`` with a batch; they are computed and logged at the end of the epoch."""
        if stage in self.stage_metrics:
            metrics = self.stage_metrics[stage]
            assert isinstance(metrics, MetricCollection)
            metrics.update(output, target)
            self.log_dict(metrics, on_step=False, on_epoch=True, prog_bar=stage == "val")

    def on_fit_start(self) -> None:
        for metrics in self.stage_metrics.values():
            # After trainer.validate their states are inference tensors, which may not be written to in fit.
            metrics.reset()  # type: ignore[operator]
        self._resolved = {}
        # Penalties on activations listen to layers, and must do so before the first forward pass.
        for penalty in self.penalties.values():
            if callable(getattr(penalty, "attach", None)):
                penalty.attach(self)  # type: ignore[operator]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.objective(self.loss_terms(batch), stage="train", batch_size=self.batch_size(batch))

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return self.objective(self.loss_terms(batch), stage="val", batch_size=self.batch_size(batch))

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        return self.objective(self.loss_terms(batch), stage="test", batch_size=self.batch_size(batch))

    def configure_model(self) -> None:
        """Nothing to build; strategies that shard the model ask that the hook is there."""

    def configure_optimizers(self) -> Any:
        return optimizer_of(self, self._make_optimizer, name="optimizer")

    def _weight(self, name: str) -> float:
        weight = self.loss_weights.get(name, 1.0)
        return self._factor(name, weight) if isinstance(weight, Schedule) else weight

    def _factor(self, name: str, schedule: Schedule) -> float:
        """Return the factor of this step of ``fit``; 1 elsewhere, as on a copy without a Trainer."""
        trainer = self._trainer
        if not isinstance(trainer, Trainer) or trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return 1.0
        if name not in self._resolved:
            self._resolved[name] = _in_steps(f"loss_weights[{name!r}]", schedule, trainer)
        schedule, total = self._resolved[name]
        # Under manual optimization trainer.global_step counts the steps of every optimizer.
        batches = trainer.fit_loop.epoch_loop._batches_that_stepped
        return schedule.factor(trainer.global_step if self.automatic_optimization else batches, total)

    def _check(self, terms: Mapping[str, Tensor]) -> None:
        require(len(terms) > 0, "loss_terms", terms, "at least one named term")
        for name, term in terms.items():
            shape = tuple(term.shape) if isinstance(term, Tensor) else term
            require(shape == (), f"loss term {name!r}", shape, "a tensor of shape (); reduce it with mean or sum")
        for name in self.loss_weights:
            if name not in terms:
                known = ", ".join(terms)
                raise ValueError(f"loss_weights names {name!r}, but the terms are {known}{did_you_mean(name, terms)}")


def _by_name(penalties: Sequence[nn.Module]) -> dict[str, nn.Module]:
    """Name each penalty after its class, ``L2Penalty`` as "l2"; further ones of a class get a number."""
    named: dict[str, nn.Module] = {}
    for penalty in penalties:
        base = type(penalty).__name__.removesuffix("Penalty").lower() or "penalty"
        taken = sum(name == base or name.startswith(f"{base}_") for name in named)
        named[base if not taken else f"{base}_{taken + 1}"] = penalty
    return named


def _in_steps(name: str, schedule: Schedule, trainer: Trainer) -> tuple[Schedule, int | None]:
    """Return ``schedule`` with durations in optimizer steps, and the length of the run if the schedule needs it."""
    batches, accumulate = trainer.num_training_batches, trainer.accumulate_grad_batches
    per_epoch = None if math.isinf(batches) else math.ceil(batches / accumulate)
    schedule = schedule.resolve(steps_per_epoch=per_epoch, steps_per_batch=1 / accumulate)
    if not schedule.needs_total:
        return schedule, None
    total = trainer.estimated_stepping_batches
    known = 0 < total < math.inf
    require(known, name, schedule, "a schedule without fractions of the run, whose length is not known; set max_steps")
    return schedule, int(total)
