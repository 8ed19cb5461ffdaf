"""Strings of three handwritten digits, put together from real ones, as Lightning wants them."""

import numpy as np
import torch
from lightning import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from .digits import Part, load_split

LENGTH = 3
COLUMNS = 32  # three digits of 8 columns, and room for gaps of at most 2 around them
SIZES: dict[Part, int] = {"train": 4000, "val": 500, "test": 1000}
SEEDS: dict[Part, int] = {"train": 0, "val": 1, "test": 2}


def compose(
    images: NDArray[np.float32], labels: NDArray[np.int64], num: int, *, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return ``num`` strings ``[N, 1, 8, 32]`` of digits drawn from ``images``, and labels ``[N, 3]``.

    Before each digit lies a gap of 0, 1 or 2 empty columns, each as likely as the others, so that the places
    of the digits have to be found. The rest of the 32 columns is empty.
    """
    generator = np.random.RandomState(seed)  # NumPy promises never to change its numbers
    chosen = generator.randint(len(images), size=(num, LENGTH))
    gaps = generator.randint(3, size=(num, LENGTH))
    starts = gaps.cumsum(axis=1) + 8 * np.arange(LENGTH)
    strings = np.zeros((num, 1, 8, COLUMNS), dtype=np.float32)
    for string, picks, begins in zip(strings, chosen, starts, strict=True):
        for pick, begin in zip(picks, begins, strict=True):
            string[:, :, begin : begin + 8] = images[pick]
    return strings, labels[chosen]


def load_strings(part: Part) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the strings of a part, the same on every machine; no image of a digit is in two parts."""
    images, labels = load_split()[part]
    return compose(images, labels, SIZES[part], seed=SEEDS[part])


class StringsDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images and labels; with ``shift``, each image is moved up or down by at most one pixel at random."""

    def __init__(self, images: Tensor, labels: Tensor, *, shift: bool = False) -> None:
        self.images = F.pad(images, (0, 0, 1, 1))  # the frame is what a shift moves in: paper
        self.labels = labels
        self.shift = shift

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        top = int(torch.randint(3, ())) if self.shift else 1
        return self.images[index, :, top : top + 8], self.labels[index]


class StringsDataModule(LightningDataModule):
    """Loaders over the strings: images and labels, a digit's label one above its value, since 0 is the blank.

    Args:
        batch_size: Strings in a batch.
        num_workers: Loader processes; images this small are fastest with none.
        augment: Move training images up or down by a pixel: 1257 digits are few, and soon known by heart.
        seed: Seed of the order of training strings.
    """

    def __init__(
        self, *, batch_size: int = 32, num_workers: int = 0, augment: bool = True, seed: int = 0
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.augment = augment
        self.seed = seed
        self.datasets: dict[Part, StringsDataset] = {}

    def setup(self, stage: str) -> None:
        """Put the strings together."""
        parts: tuple[Part, ...] = ("train", "val", "test")
        strings = {part: load_strings(part) for part in parts}
        self.datasets = {
            part: StringsDataset(
                torch.from_numpy(images),
                torch.from_numpy(digits) + 1,
                shift=self.augment and part == "train",
            )
            for part, (images, digits) in strings.items()
        }

{% set samples, batch, part, whole_batches = "strings", "tuple[Tensor, Tensor]", "Part", false -%}
{% include "shared/loaders.py" -%}
