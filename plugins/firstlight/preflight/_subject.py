"""What is examined: a module, batches of its data, and the plan of the run."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities import CombinedLoader, GradClipAlgorithmType
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from firstlight._batch import size_of
from firstlight._require import require
from firstlight.preflight._twin import Plan, hushed

_SAMPLES = 2048  # looked at for facts about the data
_BATCHES = 64


@dataclass
class Subject:
    """A module with data to examine it on; the user's own objects here are only looked at."""

    module: LightningModule
    plan: Plan
    train: list[Any]  # batches in the order in which the loader gives them, on the CPU
    val: list[Any] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)  # what could not be had, by reading
    loader: Any = None  # of the training data
    datamodule: LightningDataModule | None = None  # a copy
    trainer: Trainer | None = None


def subject_of(module: LightningModule, data: Any, trainer: Trainer | None) -> Subject:
    """Gather batches and the plan; call it with isolated random numbers.

    Raises:
        TypeError: ``module`` is no LightningModule, or ``data`` gives no training batches.
    """
    require(isinstance(module, LightningModule), "module", module, "a LightningModule", error=TypeError)
    notes: dict[str, str] = {}
    data = _ready(data, trainer) if isinstance(data, LightningDataModule) else data
    train_loader, val_loader = _loaders(module, data)
    train = [] if train_loader is None else _take(train_loader)
    require(len(train) > 0, "data", data, "data with at least one training batch", error=TypeError)
    val = _take(val_loader) if val_loader is not None else []
    if not val:
        notes["splits/"] = "there is no validation data"
    datamodule = data if isinstance(data, LightningDataModule) else None
    plan = _plan(module, trainer, train_loader)
    return Subject(module, plan, train, val, notes, train_loader, datamodule, trainer)


def _ready(data: LightningDataModule, trainer: Trainer | None) -> LightningDataModule:
    """Copy a datamodule and set it up."""
    is_set_up = getattr(trainer, "datamodule", None) is data  # by the fit that is going on
    data = _copied(data)
    if not is_set_up:
        with hushed():
            data.prepare_data()
            data.setup("fit")
    return data


def _loaders(module: LightningModule, data: Any) -> tuple[Any, Any]:
    if isinstance(data, LightningDataModule):
        return _together(data.train_dataloader()), _one(_optional(data, "val_dataloader"))
    if isinstance(data, (tuple, list)) and len(data) == 2 and not isinstance(data[0], Tensor):
        return _together(data[0]), _one(data[1])
    if data is None:
        return _together(module.train_dataloader()), _one(_optional(module, "val_dataloader"))
    return _together(data), None


def _copied(data: LightningDataModule) -> LightningDataModule:
    """Copy a datamodule; the data sets in it are shared where they cannot be copied."""
    apart = copy.copy(data)
    apart.trainer = None
    try:
        apart = copy.deepcopy(apart)
    except Exception:  # open files, locks, handles: its loaders are asked for anew, and only they move
        apart = copy.copy(apart)
    apart.trainer = data.trainer
    return apart


def _optional(owner: Any, hook: str) -> Any:
    with hushed():
        try:
            return getattr(owner, hook)()
        except Exception:  # Lightning's own default raises: there is no such loader
            return None


def _together(loader: Any) -> Any:
    """Return several training loaders as one that gives a batch of each at once, as Lightning does."""
    several = isinstance(loader, (list, tuple, Mapping)) and not isinstance(loader, DataLoader)
    return CombinedLoader(loader, "max_size_cycle") if several and len(loader) else loader


def _one(loader: Any) -> Any:
    """Return the first of several loaders; validation takes one after the other."""
    if isinstance(loader, CombinedLoader):
        loader = loader.flattened
    while isinstance(loader, (list, tuple, Mapping)) and not isinstance(loader, DataLoader):
        values = list(loader.values()) if isinstance(loader, Mapping) else list(loader)
        if not values:
            return None
        loader = values[0]
    return loader


def _take(loader: Any) -> list[Any]:
    batches: list[Any] = []
    samples = 0
    for batch in itertools.islice(_apart(loader), _BATCHES):
        batches.append(batch)
        samples += size_of(batch) or 1
        if samples >= _SAMPLES and len(batches) >= 2:
            break
    return batches


def _apart(loader: Any) -> Iterator[Any]:
    """Iterate without worker processes and without moving the loader's own sampler and generator."""
    if isinstance(loader, CombinedLoader):
        return (batch for batch, *_ in iter(_combined_apart(loader)))
    dataset = getattr(loader, "dataset", None)
    if type(loader) is DataLoader and not isinstance(dataset, IterableDataset):
        sampler = copy.copy(loader.batch_sampler if loader.batch_sampler is not None else loader.sampler)
        inner = getattr(sampler, "sampler", None)
        if inner is not None:
            sampler.sampler = _own_generator(copy.copy(inner))  # type: ignore[union-attr]
        _own_generator(sampler)
        settings: dict[str, Any] = {"collate_fn": loader.collate_fn}
        if loader.batch_sampler is not None:
            settings["batch_sampler"] = sampler
        else:
            settings |= {"batch_size": None, "sampler": sampler}
        return iter(DataLoader(loader.dataset, **settings))
    try:
        return iter(copy.deepcopy(loader))
    except Exception:  # a stream that cannot be copied, but can be begun again
        return iter(loader)


@dataclass(frozen=True)
class _Apart:
    """A loader that is begun anew at each pass and leaves the one under it where it is."""

    loader: Any

    def __iter__(self) -> Iterator[Any]:
        return _apart(self.loader)

    def __len__(self) -> int:
        return len(self.loader)


def _combined_apart(loader: CombinedLoader) -> CombinedLoader:
    apart = copy.copy(loader)
    apart.flattened = [_Apart(part) for part in loader.flattened]
    return apart


def _own_generator(sampler: Any) -> Any:
    if isinstance(getattr(sampler, "generator", None), torch.Generator):
        sampler.generator = sampler.generator.clone_state()
    return sampler


def _plan(module: LightningModule, trainer: Trainer | None, loader: Any) -> Plan:
    length = _length(loader)
    if trainer is None:
        return Plan(num_batches=length, device=module.device)
    on_cpu = module.device.type == "cpu"
    precision = str(trainer.precision)
    algorithm = trainer.gradient_clip_algorithm
    limit = trainer.limit_train_batches
    if isinstance(limit, float):
        length = max(1, int(length * limit))
    elif limit is not None:
        length = max(1, min(length, int(limit)))
    actors = [c for c in trainer.callbacks if getattr(c, "role", None) == "actor"]  # type: ignore[attr-defined]
    return Plan(
        max_epochs=1000 if trainer.max_epochs is None else trainer.max_epochs,
        max_steps=trainer.max_steps,
        num_batches=length,
        accumulate=trainer.accumulate_grad_batches,
        clip_value=float(trainer.gradient_clip_val) if trainer.gradient_clip_val else None,
        clip_algorithm=algorithm.value if isinstance(algorithm, GradClipAlgorithmType) else algorithm,
        precision="32-true" if on_cpu and precision == "16-mixed" else precision,
        device=module.device,
        actors=tuple(c for c in actors if not isinstance(c, EarlyStopping) and getattr(c, "in_step", True)),
    )


def _length(loader: Any) -> int:
    if isinstance(loader, CombinedLoader):
        loader = iter(_combined_apart(loader))  # its length is known from then on
    try:
        return max(1, len(loader))
    except TypeError:
        return 1000


def with_tensors(batch: Any, change: Any) -> Any:
    """Return the batch with ``change(tensor)`` in place of every tensor."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return type(batch)({key: with_tensors(value, change) for key, value in batch.items()})  # type: ignore[call-arg]
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(with_tensors(value, change) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(with_tensors(value, change) for value in batch)
    return batch


def part_of(batch: Any, index: Tensor) -> Any:
    """Return the samples ``index`` of a batch."""
    size = size_of(batch)

    def change(tensor: Tensor) -> Tensor:
        return tensor[index] if tensor.ndim and len(tensor) == size else tensor

    return with_tensors(batch, change)
