"""Small models for generative tasks on the digits of scikit-learn, each built of plain values, and their data."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback
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


class Views(nn.Module):
    """A view of each digit: turned, moved, in another size, with noise."""

    def __init__(self, noise: float = 0.1) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        num = len(x)
        angle = 0.3 * torch.randn(num, device=x.device)
        size = 1 + 0.15 * torch.randn(num, device=x.device)
        move = 0.15 * torch.randn(num, 2, 1, device=x.device)
        turn = (
            torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(num, 2, 2) * size[:, None, None]
        )
        grid = nn.functional.affine_grid(torch.cat([turn, move], 2), list(x.shape), align_corners=False)
        x = nn.functional.grid_sample(x, grid, align_corners=False)
        return x + self.noise * torch.randn_like(x)


class Convolutions(nn.Sequential):
    """Images [N, 1, 8, 8] to ``features``."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__(
            nn.Conv2d(1, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * width * 16, features),
        )


class SeedByBatch(Callback):
    """Random numbers that depend on the step alone, so that a resumed run draws those of the unbroken one."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        torch.manual_seed(1000 + trainer.fit_loop.total_batch_idx)


class SaveAfter(Callback):
    """Saves a checkpoint after so many training batches, in the middle of an epoch."""

    def __init__(self, path, batches: int) -> None:
        self.path, self.batches = path, batches

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx + 1 == self.batches:
            trainer.save_checkpoint(self.path)


class Batches:
    """A loader of these batches, which draws no random number (a DataLoader draws a seed for its workers)."""

    def __init__(self, *batches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


class Kept(Callback):
    """Keeps the metrics of every training step."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.rows.append({key: float(value) for key, value in trainer.callback_metrics.items()})
