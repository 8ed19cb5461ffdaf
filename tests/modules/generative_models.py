"""Small models for generative tasks on the digits of scikit-learn, each built of plain values, and their data."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset


def digits(held_out: bool = False) -> TensorDataset:
    """Return four fifths of the 1797 digits, or the rest: images [1, 8, 8] from 0 to 1, and labels."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    chosen = (torch.arange(len(images)) % 5 == 0) == held_out
    return TensorDataset(images[chosen], torch.tensor(data.target)[chosen])


class Perceptron(nn.Sequential):
    """Flattens what it gets; ``shape`` is that of one output."""

    def __init__(self, inputs: int, hidden: int, shape: list[int], leak: float = 0.0) -> None:
        outputs = int(torch.tensor(shape).prod())
        super().__init__(
            nn.Flatten(),
            nn.Linear(inputs, hidden),
            nn.LeakyReLU(leak),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(leak),
            nn.Linear(hidden, outputs),
            nn.Unflatten(1, shape),
        )


class Pair(nn.Module):
    """An encoder that returns mean and log-variance apart."""

    def __init__(self, inputs: int, latent: int) -> None:
        super().__init__()
        self.mean, self.log_variance = nn.Linear(inputs, latent), nn.Linear(inputs, latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(x), self.log_variance(x)
