"""One training batch before training begins, without moving the loader that trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, IterableDataset

from firstlight._require import require


def sample_batch(trainer: Trainer, pl_module: LightningModule) -> Any:
    """Return a random training batch, collated and passed through the transfer hooks; call it with isolated RNG.

    From a dataset with indices it is drawn by indices of our own: no sampler, generator or iterator of the loader
    moves. From a stream it is the first batch of a loader that ``train_dataloader`` builds anew; a stream that was
    passed to ``fit`` as it is cannot be looked into without taking the batch away.

    Raises:
        ValueError: several loaders, or a stream that was passed to ``fit`` as it is.
    """
    source = trainer.fit_loop._data_source
    loader: Any = source.dataloader()
    several = isinstance(loader, (list, tuple, Mapping)) or type(loader).__name__ == "CombinedLoader"
    require(not several, "lsuv", True, "used with one training loader; call firstlight.initializers.lsuv_ instead")
    dataset = getattr(loader, "dataset", None)
    indexed = hasattr(dataset, "__len__") and not isinstance(dataset, IterableDataset) and hasattr(loader, "collate_fn")
    if isinstance(loader, DataLoader) and indexed:
        batch = _by_indices(loader)
    else:
        expected = "used with a dataset that has indices or a train_dataloader hook; or call lsuv_ with a batch instead"
        require(source.is_module(), "lsuv", True, expected)
        batch = next(iter(loader))
    return pl_module._apply_batch_transfer_handler(batch, device=pl_module.device, dataloader_idx=0)


def _by_indices(loader: DataLoader[Any]) -> Any:
    dataset: Any = loader.dataset
    size = getattr(loader.batch_sampler, "batch_size", None) or loader.batch_size
    if size is None:  # the dataset gives whole batches
        return loader.collate_fn(dataset[int(torch.randint(len(dataset), ()))])
    chosen = torch.randperm(len(dataset))[: max(int(size), 2)].tolist()
    return loader.collate_fn([dataset[index] for index in chosen])
