"""Strings of three handwritten digits, and a small network that reads them column by column."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningDataModule
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

ALPHABET = "0123456789"  # class k + 1; class 0 is the blank
COLUMNS = 32  # three digits of 8 columns and up to four gaps of 2


class ColumnReader(nn.Module):
    """Images ``[N, 1, 8, W]`` to logits ``[N, W, 11]``, one frame a column."""

    def __init__(self, channels: int = 16, width: int = 48) -> None:
        super().__init__()
        self.pictures = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), nn.ReLU())
        self.columns = nn.LSTM(8 * channels, width, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * width, 11)

    def forward(self, images: Tensor) -> Tensor:
        columns = self.pictures(images).flatten(1, 2).transpose(1, 2)
        return self.head(self.columns(columns)[0])


def digit_strings(num: int, *, seed: int, test: bool) -> TensorDataset:
    """Return images, labels, lengths in columns and in labels; every fourth digit image is for tests only."""
    digits = load_digits()
    mine = torch.arange(len(digits.target)) % 4 == 3 if test else torch.arange(len(digits.target)) % 4 != 3
    pictures = torch.tensor(digits.images, dtype=torch.float32)[mine] / 16
    labels = torch.tensor(digits.target)[mine] + 1
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(labels), (num, 3), generator=generator)
    gaps = torch.randint(3, (num, 4), generator=generator)
    starts = gaps[:, :3].cumsum(1) + 8 * torch.arange(3)
    images = torch.zeros(num, 1, 8, COLUMNS)
    for image, picks, begins in zip(images, chosen.tolist(), starts.tolist(), strict=True):
        for pick, begin in zip(picks, begins, strict=True):
            image[0, :, begin : begin + 8] = pictures[pick]
    return TensorDataset(images, labels[chosen], 24 + gaps.sum(1), torch.full((num,), 3))


def strings_loader(num: int, *, seed: int = 0, test: bool = False, batch_size: int = 32) -> DataLoader:
    return DataLoader(digit_strings(num, seed=seed, test=test), batch_size=batch_size, shuffle=not test)


class DigitStrings(LightningDataModule):
    def train_dataloader(self) -> DataLoader:
        return strings_loader(64)

    def val_dataloader(self) -> DataLoader:
        return strings_loader(24, seed=1, test=True)

    test_dataloader = predict_dataloader = val_dataloader
