"""The digits as Lightning wants them: images in 0..1, and labels for what measures."""

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from .digits import Part, load_split


class DigitsDataModule(LightningDataModule):
    """Loaders over the fixed split.

    Args:
        batch_size: Images in a batch.
        num_workers: Loader processes; images this small are fastest with none.
        seed: Seed of the order of training images.
    """

    def __init__(self, *, batch_size: int = 64, num_workers: int = 0, seed: int = 0) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.datasets: dict[Part, TensorDataset] = {}

    def setup(self, stage: str) -> None:
        """Load the split. For other data: images ``[N, C, H, W]`` and labels ``[N]`` of each part."""
        self.datasets = {
            part: TensorDataset(torch.from_numpy(images), torch.from_numpy(labels))
            for part, (images, labels) in load_split().items()
        }

{% set samples, batch, part, whole_batches = "images", "tuple[Tensor, ...]", "Part", true -%}
{% include "shared/loaders.py" -%}
