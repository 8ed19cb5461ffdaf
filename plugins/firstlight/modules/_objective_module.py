"""ObjectiveModule: named loss terms, weighted and added up, with penalties, metrics, logging and an optimizer."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torchmetrics import Metric, MetricCollection

from firstlight._require import did_you_mean, require
from firstlight.modules._recorded import recorded
from firstlight.optimizers import param_groups
from firstlight.schedules import Schedule

Stage: TypeAlias = Literal["train", "val", "test"]


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
        loss_weights: factor by term, a number or a schedule of the optimizer step; 1 where not given.

    Raises:
        ValueError: a weight for a term that :meth:`loss_terms` does not return; a term that is not a scalar.
        TypeError: an argument that is neither the object asked for nor its spec.
    """

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
        if optimizer is not None:
            require(callable(optimizer), "optimizer", optimizer, "a function of parameter groups", error=TypeError)
        self._make_optimizer = optimizer or functools.partial(AdamW, lr=1e-3)
        self.loss_weights = dict(loss_weights or {})
        for name, weight in self.loss_weights.items():
            ok = isinstance(weight, (int, float, Schedule))
            require(ok, f"loss_weights[{name!r}]", weight, "a number or a Schedule", error=TypeError)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = recorded(cls.__init__)  # type: ignore[method-assign]

    @abstractmethod
    def loss_terms(self, batch: Any) -> dict[str, Tensor]:
        """Return the named terms of the loss on ``batch``, each a scalar, unweighted."""

    def batch_size(self, batch: Any) -> int:
        """Return the number of samples in ``batch``: the length of the first tensor in it."""
        for tensor in _tensors(batch):
            if tensor.ndim:
                return tensor.shape[0]
        raise ValueError(f"cannot tell the size of a batch of {type(batch).__name__}; override batch_size(batch)")

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
        training = stage == "train"
        for name, value in values.items():
            self.log(
                name,
                value.detach(),
                on_step=training,
                on_epoch=not training,
                # a value on the progress bar is read from the device at every training step
                prog_bar=name == "val/loss",
                # ranks log their own training loss; averaging it would cost a collective per step
                sync_dist=not training,
                batch_size=batch_size,
            )
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

    def configure_optimizers(self) -> Any:
        # weight_decay=None: groups that decay take the optimizer's own number, so it is written in one place.
        optimizer: object = self._make_optimizer(param_groups(self, weight_decay=None))
        require(
            isinstance(optimizer, Optimizer), "optimizer", optimizer, "one that returns an Optimizer", error=TypeError
        )
        return optimizer

    def _weight(self, name: str) -> float:
        weight = self.loss_weights.get(name, 1.0)
        if not isinstance(weight, Schedule):
            return weight
        total = int(self.trainer.estimated_stepping_batches) if weight.needs_total else None
        return weight.factor(self.trainer.global_step, total)

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


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, (list, tuple)) else []
