"""What many of the programs share: data sets, a DataModule over arrays, a classifier and a regressor."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

Arrays = tuple[Tensor, Tensor]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


@lru_cache(maxsize=1)
def digits() -> Arrays:
    """Return 1797 images of 8 by 8 in [0, 1], as 64 features, and their digits."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)


@lru_cache(maxsize=1)
def breast_cancer() -> Arrays:
    """Return 569 samples of 30 standardized features, and whether the tumor is benign."""
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    return standardized(x), torch.tensor(y)


@lru_cache(maxsize=1)
def diabetes() -> Arrays:
    """Return 442 samples of 10 standardized features, and the progression of the disease (25 to 346)."""
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    return standardized(x), torch.tensor(y, dtype=torch.float32)


@lru_cache(maxsize=8)
def friedman(seed: int) -> Arrays:
    """Return 1000 samples of ten features and a standardized target that five of them make."""
    from sklearn.datasets import make_friedman1

    x, y = make_friedman1(1000, noise=0.5, random_state=seed)
    return torch.tensor((x - 0.5) * 3.4, dtype=torch.float32), standardized(y)


@lru_cache(maxsize=8)
def moons(seed: int) -> Arrays:
    from sklearn.datasets import make_moons

    x, y = make_moons(1000, noise=0.15, random_state=seed)
    return standardized(x), torch.tensor(y)


@lru_cache(maxsize=8)
def circles(seed: int) -> Arrays:
    from sklearn.datasets import make_circles

    x, y = make_circles(1000, noise=0.1, factor=0.5, random_state=seed)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


def standardized(values: Any) -> Tensor:
    values = torch.as_tensor(values, dtype=torch.float64)
    return ((values - values.mean(0)) / values.std(0)).float()


class ArrayData(LightningDataModule):
    """Three quarters of the samples to train with, a quarter to validate; which ones depends on the seed."""

    val_batch_size = 512  # one batch: each validation set here is smaller, so means over batches are exact

    def __init__(self, arrays: Callable[[], Arrays], *, batch_size: int, seed: int) -> None:
        super().__init__()
        self.arrays = arrays
        self.batch_size = batch_size
        self.seed = seed

    def setup(self, stage: str | None = None) -> None:
        x, y = self.arrays()
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(self.seed))
        cut = int(0.75 * len(x))
        self.train_set = self.training_samples(x[order[:cut]], y[order[:cut]])
        self.val_set = TensorDataset(x[order[cut:]], y[order[cut:]])

    def training_samples(self, x: Tensor, y: Tensor) -> TensorDataset:
        return TensorDataset(x, y)

    def train_dataloader(self) -> DataLoader:
        # a generator of its own, made anew: the order does not depend on who has looked at the data before
        generator = torch.Generator().manual_seed(self.seed)
        return DataLoader(self.train_set, batch_size=self.batch_size, shuffle=True, generator=generator)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val_set, batch_size=self.val_batch_size)


class Classifier(LightningModule):
    """Cross-entropy over the classes."""

    def __init__(self, net: nn.Module, optimizer: MakeOptimizer) -> None:
        super().__init__()
        self.net = net
        self.loss = nn.CrossEntropyLoss()
        self.optimizer = optimizer

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Arrays, batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.loss(self(x), y)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Arrays, batch_idx: int) -> None:
        x, y = batch
        scores = self(x)
        self.log("val/loss", self.loss(scores, y))
        self.log("val/accuracy", (scores.argmax(1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters())


class Regressor(LightningModule):
    """Squared error of one number."""

    def __init__(self, net: nn.Module, optimizer: MakeOptimizer) -> None:
        super().__init__()
        self.net = net
        self.optimizer = optimizer

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Arrays, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x).squeeze(1), y)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Arrays, batch_idx: int) -> None:
        x, y = batch
        prediction = self(x).squeeze(1)
        self.log("val/loss", F.mse_loss(prediction, y))
        self.log("val/r2", r2(prediction, y))

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters())


def r2(prediction: Tensor, target: Tensor) -> Tensor:
    return 1 - (prediction - target).square().sum() / (target - target.mean(0)).square().sum()


def mlp(*sizes: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Return Linear layers of these sizes with an activation between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


def pretrained(*sizes: int, seed: int, digits_a_class: int = 1) -> nn.Sequential:
    """Return a net that has learned the training samples before, each digit or several of them as one class."""
    return copy.deepcopy(_pretrained(*sizes, seed=seed, digits_a_class=digits_a_class))


@lru_cache(maxsize=8)
def _pretrained(*sizes: int, seed: int, digits_a_class: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = mlp(*sizes)
        data = ArrayData(digits, batch_size=32, seed=seed)
        data.setup()
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        for _ in range(15):
            for x, y in data.train_dataloader():
                optimizer.zero_grad()
                F.cross_entropy(net(x), y // digits_a_class).backward()
                optimizer.step()
    return net
