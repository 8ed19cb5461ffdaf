"""SupervisedModule: a model and a loss on (input, target) batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torchmetrics import Metric

from firstlight._require import require
from firstlight.modules._exportable import Exportable
from firstlight.modules._objective_module import ObjectiveModule
from firstlight.modules._shared import Stage
from firstlight.schedules import Schedule


@final
class SupervisedModule(ObjectiveModule):
    """Train ``model`` so that ``loss(model(input), target)`` falls; the loss's one term is named ``task``.

    Batches are ``(input, target)`` or a mapping with the keys ``"input"`` and ``"target"``. Validation and test steps
    return ``{"loss", "output", "target"}`` for callbacks that look at predictions; prediction returns the output.

    Args:
        model: input to output. Outside LightningCLI give a spec for it to let ``load_from_checkpoint`` rebuild it;
            with an object of your own class pass ``model=`` again when loading.
        loss: output and target to a scalar.
        penalties: see :class:`ObjectiveModule`.
        metrics: see :class:`ObjectiveModule`.
        optimizer: see :class:`ObjectiveModule`.
        loss_weights: see :class:`ObjectiveModule`; the only term is ``task``.
        compile: compile ``model`` in place with :func:`torch.compile`; checkpoint keys stay the same.

    >>> from firstlight.losses import CrossEntropyLoss
    >>> module = SupervisedModule(nn.Linear(4, 3), CrossEntropyLoss(label_smoothing=0.1))
    >>> module.hparams["loss"]["init_args"]["label_smoothing"]
    0.1
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        *,
        penalties: Sequence[nn.Module] = (),
        metrics: Mapping[str, Metric] | None = None,
        optimizer: OptimizerCallable | None = None,
        loss_weights: Mapping[str, float | Schedule] | None = None,
        compile: bool = False,  # noqa: A002  torch's word
    ) -> None:
        super().__init__(penalties=penalties, metrics=metrics, optimizer=optimizer, loss_weights=loss_weights)
        require(isinstance(model, nn.Module), "model", model, "an nn.Module or its spec", error=TypeError)
        require(isinstance(loss, nn.Module), "loss", loss, "a loss module or its spec", error=TypeError)
        self.model = model
        self.loss = loss
        self._compile = compile

    def configure_model(self) -> None:
        if self._compile:
            # In place: torch.compile(model) would put "_orig_mod" into every key of the checkpoint.
            self.model.compile()
            self._compile = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def loss_terms(self, batch: Any) -> dict[str, Tensor]:
        inputs, target = _unpack(batch)
        return {"task": self.loss(self.model(inputs), target)}

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        return self._evaluate(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        return self._evaluate(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.model(_input(batch))

    def export_model(self, batch: Any) -> Exportable:
        return Exportable(self.model, (_input(batch),))

    def _evaluate(self, batch: Any, stage: Stage) -> dict[str, Any]:
        inputs, target = _unpack(batch)
        output = self.model(inputs)
        terms = {"task": self.loss(output, target)}
        loss = self.objective(terms, stage=stage, batch_size=self.batch_size(batch))
        self.update_metrics(output, target, stage=stage)
        return {"loss": loss, "output": output, "target": target}


def _input(batch: Any) -> Any:
    """Return the input of a batch for prediction, which may come without targets."""
    return batch if isinstance(batch, Tensor) else _unpack(batch)[0]


def _unpack(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, Mapping) and {"input", "target"} <= batch.keys():
        return batch["input"], batch["target"]
    ok = isinstance(batch, (tuple, list)) and len(batch) == 2
    found = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
    require(ok, "batch", found, "(input, target) or a mapping with 'input' and 'target'", error=TypeError)
    return batch[0], batch[1]
