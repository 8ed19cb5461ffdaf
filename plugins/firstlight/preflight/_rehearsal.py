"""A step, a save and a validation on a copy: what the state holds, and what is logged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.plugins import CheckpointIO
from torchmetrics import Metric

from firstlight._require import said_by
from firstlight.preflight._subject import Subject
from firstlight.preflight._twin import FOREIGN, ForeignError, Stop, fit, held_by, twin_of


@dataclass
class Rehearsal:
    """What a checkpoint would hold after the first step, and the keys that were logged, with whether ranks would agree.

    ``unfinished`` says why keys of validation are not among them; empty if they are.
    """

    checkpoint: dict[str, Any] = field(default_factory=dict)
    logged: dict[str, bool] = field(default_factory=dict)
    unfinished: str = ""


def rehearse(subject: Subject, batch: Any, *, weights_only: bool, val: Sequence[Any]) -> Rehearsal:
    """Train a copy for one step on ``batch``, save it the Trainer's way, to nowhere, and validate it on ``val``.

    Raises:
        ForeignError: the step would change the original.
        Exception: what the step or the save raises; what validation raises is a reason.
    """
    rehearsal = Rehearsal()
    twin = twin_of(subject.module)
    said = _listening(twin)
    nowhere = _Nowhere()

    original = {id(parameter) for parameter in subject.module.parameters()}

    class Save(Callback):
        def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if held_by(trainer.optimizers) & original:
                raise ForeignError(FOREIGN)

        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            trainer.strategy.checkpoint_io = nowhere
            trainer.save_checkpoint("rehearsal", weights_only=weights_only)
            rehearsal.checkpoint = nowhere.held
            if not val:  # an epoch's end may look for what only a validation gives
                rehearsal.unfinished = "there is no validation data"
                raise _Done

    plan = dataclasses.replace(subject.plan, accumulate=1)
    rehearsal.logged = said
    try:
        done = fit(twin, plan, [batch], [Save(), Stop(1)], val=val)
        rehearsal.logged = {key: said.get(key, said.get(_stem(key), True)) for key in done.callback_metrics}
    except _Done:
        pass
    except Exception as error:
        if not rehearsal.checkpoint:
            raise
        rehearsal.unfinished = f"validation raised {said_by(error)}"
    _add_others(subject, rehearsal.checkpoint, weights_only=weights_only)
    return rehearsal


class _Done(BaseException):
    """All that was wanted is known."""


class _Nowhere(CheckpointIO):
    """Holds what is to be saved."""

    def __init__(self) -> None:
        self.held: dict[str, Any] = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        self.held = checkpoint

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self.held

    def remove_checkpoint(self, path: Any) -> None:
        """Nothing was written."""


def _listening(twin: LightningModule) -> dict[str, bool]:
    """Let ``twin`` log as it would in the run, and note of each key whether ranks would agree on it."""
    said: dict[str, bool] = {}
    plain: Callable[..., None] = type(twin).log
    del twin.__dict__["log_dict"]  # twins do not log; this one does

    def log(name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        plain(twin, name, value, *args, **kwargs)
        said[name] = said.get(name, True) and (isinstance(value, Metric) or bool(kwargs.get("sync_dist")))

    twin.log = log  # type: ignore[method-assign]
    return said


def _stem(key: str) -> str:
    """Return the name under which a key was logged.

    >>> _stem("train/loss_epoch"), _stem("val/loss/dataloader_idx_0")
    ('train/loss', 'val/loss')
    """
    return key.partition("/dataloader_idx_")[0].removesuffix("_epoch").removesuffix("_step")


def _add_others(subject: Subject, checkpoint: dict[str, Any], *, weights_only: bool) -> None:
    """Add what the copy's Trainer does not hold: the datamodule, and callbacks that take no part in a step."""
    data = subject.datamodule
    if data is not None and data.hparams:
        checkpoint[LightningDataModule.CHECKPOINT_HYPER_PARAMS_KEY] = dict(data.hparams)
    if data is not None and (state := _state_of(data)):
        checkpoint[type(data).__qualname__] = state
    if weights_only or subject.trainer is None:
        return
    for callback in subject.trainer.callbacks:  # type: ignore[attr-defined]
        if all(callback is not actor for actor in subject.plan.actors) and (state := _state_of(callback)):
            checkpoint["callbacks"][callback.state_key] = state


def _state_of(part: Any) -> Any:
    try:
        return part.state_dict()
    except Exception:  # before a fit it may have none yet
        return None


def bytes_of(value: Any) -> int:
    """Return the bytes of all tensors in a value; those that share memory count once.

    >>> weight = torch.zeros(10)
    >>> bytes_of({"a": weight, "b": [weight.view(2, 5), torch.zeros(1)]})
    44
    """
    storages: dict[int, int] = {}

    def look(part: Any) -> None:
        if isinstance(part, torch.Tensor) and part.layout is torch.strided:
            storage = part.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(part, dict):
            for item in part.values():
                look(item)
        elif isinstance(part, (list, tuple)):
            for item in part:
                look(item)

    look(value)
    return sum(storages.values())
