"""Synthetic data, so that everything runs from the first minute. Replace it by your own."""

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

Batch = tuple[Tensor, ...]


def make_samples(num_samples: int, *, seed: int) -> TensorDataset:
    """Return points ``[N, 2]`` in -1..1 and the smooth function of them that is to be learned, ``[N, 1]``."""
    # YOUR TURN: read your samples. Keep which sample belongs to which part in a file under version control.
    points = torch.rand(num_samples, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    values = torch.sin(3 * points[:, :1]) * torch.cos(2 * points[:, 1:])
    return TensorDataset(points, values)


class StarterDataModule(LightningDataModule):
    """Loaders for train, val, test and predict.

    Args:
        batch_size: Samples in a batch.
        num_workers: Loader processes; raise it when reading a sample takes time.
        seed: Seed of the data and of the order of training samples.
    """

    def __init__(self, *, batch_size: int = 64, num_workers: int = 0, seed: int = 0) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.datasets: dict[str, TensorDataset] = {}

    def setup(self, stage: str) -> None:
        """Make the parts, each from a seed of its own, so that they share no sample."""
        sizes = {"train": 1024, "val": 256, "test": 256}
        self.datasets = {
            part: make_samples(size, seed=3 * self.seed + index)
            for index, (part, size) in enumerate(sizes.items())
        }

{% set samples, batch, part, whole_batches = "samples", "Batch", "str", false -%}
{% include "shared/loaders.py" -%}
