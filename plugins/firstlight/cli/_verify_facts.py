"""What of a set-up is known to break exact resumes."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader, IterableDataset

from firstlight.recovery import ExactResume

_DEEPEST, _MOST = 3, 100


def facts(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """Return plain values, at the start of a training."""
    exact = next((c for c in trainer.callbacks if isinstance(c, ExactResume)), None)  # type: ignore[attr-defined]
    combined = trainer.fit_loop._combined_loader
    loaders = [] if combined is None else combined.flattened
    kept = module.state_dict().keys()
    return {
        "exact_resume": exact is not None,
        "differs": [] if exact is None else list(exact.differs),
        "world_size": trainer.world_size,
        "reload": int(getattr(trainer, "reload_dataloaders_every_n_epochs", 0)),
        "kernels": trainer.strategy.root_device.type != "cpu" and not torch.are_deterministic_algorithms_enabled(),
        "after_save": is_overridden("on_train_batch_end", module),
        "forgotten": [name for name, _ in module.named_buffers() if name not in kept],
        "own_state": [type(loader).__qualname__ for loader in loaders if hasattr(type(loader), "state_dict")],
        "streams": [type(s).__qualname__ for s in map(_dataset, loaders) if isinstance(s, IterableDataset)],
        "datasets": [type(dataset).__qualname__ for dataset in map(_dataset, loaders) if dataset is not None],
        "generators": [path for loader in loaders for path in _generators(loader)],
    }


def _dataset(loader: Any) -> Any:
    return getattr(loader, "dataset", None)


def _generators(loader: Any) -> list[str]:
    """Return where data keep a generator of their own; those of the loader and of torch's samplers are saved."""
    if not isinstance(loader, DataLoader):
        return []
    parts: list[Any] = [loader.dataset, loader.collate_fn, loader.sampler, loader.batch_sampler]
    seen = {id(getattr(part, "generator", None)) for part in (loader, *parts[2:])}
    return [path for part in parts for path in _within(part, type(part).__qualname__, 0, seen)]


def _within(value: Any, path: str, depth: int, seen: set[int]) -> Iterator[str]:
    if id(value) in seen or isinstance(value, type):
        return
    seen.add(id(value))
    numpy: Any = sys.modules.get("numpy")
    kinds = (torch.Generator, random.Random)
    kinds += (numpy.random.Generator, numpy.random.RandomState) if numpy else ()
    if isinstance(value, kinds):
        yield path
        return
    inner: list[tuple[Any, Any]] = list(vars(value).items()) if hasattr(value, "__dict__") else []
    if isinstance(value, (list, tuple)) and len(value) < _MOST:
        inner = list(enumerate(value))
    for name, part in inner if depth < _DEEPEST else ():
        yield from _within(part, f"{path}.{name}", depth + 1, seen)
