"""The digits as Lightning wants them."""

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from .digits import Part, load_split


class DigitsDataset(Dataset[tuple[Tensor, Tensor]]):
    """Normalized images and labels; with ``shift``, each image is moved by at most one pixel at random."""

    def __init__(self, images: Tensor, labels: Tensor, *, shift: bool = False) -> None:
        self.labels = labels
        self.shift = shift
        # The frame is what a shift moves in: the darkest value, that is, paper.
        self.images = F.pad(images, (1, 1, 1, 1), value=float(images.min()))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        top, left = torch.randint(3, (2,)).tolist() if self.shift else (1, 1)
        return self.images[index, :, top : top + 8, left : left + 8], self.labels[index]


class DigitsDataModule(LightningDataModule):
    """Loaders over the fixed split.

    Args:
        batch_size: Images in a batch.
        num_workers: Loader processes; images this small are fastest with none.
        augment: Move training images by up to one pixel.
        seed: Seed of the order of training images.
    """

    def __init__(
        self, *, batch_size: int = 64, num_workers: int = 0, augment: bool = True, seed: int = 0
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.augment = augment
        self.seed = seed
        self.datasets: dict[Part, DigitsDataset] = {}

    def setup(self, stage: str) -> None:
        """Load the split, normalized by mean and deviation of its train part."""
        split = load_split()
        mean, deviation = split["train"][0].mean(), split["train"][0].std()
        self.datasets = {
            part: DigitsDataset(
                torch.from_numpy((images - mean) / deviation),
                torch.from_numpy(labels),
                shift=self.augment and part == "train",
            )
            for part, (images, labels) in split.items()
        }

{% set samples, batch, part, whole_batches = "images", "tuple[Tensor, Tensor]", "Part", false -%}
{% include "shared/loaders.py" -%}
