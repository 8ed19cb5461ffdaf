"""Healthy: tables, plain nets and what is normal in their data."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam
from torch.utils.data import TensorDataset

from benchmark.case import Case, Knobs, Program
from benchmark.common import (
    ArrayData,
    Arrays,
    Classifier,
    MakeOptimizer,
    Regressor,
    breast_cancer,
    digits,
    friedman,
    mlp,
)


def plain(buggy: bool, seed: int, knobs: Knobs) -> Program:
    module = Classifier(mlp(64, knobs.width(64), knobs.width(64), 10), partial(Adam, lr=knobs.lr(1e-3)))
    return module, ArrayData(digits, batch_size=knobs.batch(32), seed=seed), {}


def regression(buggy: bool, seed: int, knobs: Knobs) -> Program:
    module = Regressor(mlp(10, knobs.width(64), knobs.width(64), 1), partial(Adam, lr=knobs.lr(2e-3)))
    return module, ArrayData(partial(friedman, seed), batch_size=knobs.batch(32), seed=seed), {}


@lru_cache(maxsize=8)
def rare_class(seed: int) -> Arrays:
    """Return 3000 samples of which one in 25 is positive."""
    from sklearn.datasets import make_classification

    x, y = make_classification(3000, 20, n_informative=6, n_redundant=4, weights=[0.96], flip_y=0, random_state=seed)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


class WeightedClassifier(Classifier):
    """Counts a sample of the rare class as often as it is rarer."""

    def __init__(self, net: nn.Module, optimizer: MakeOptimizer) -> None:
        super().__init__(net, optimizer)
        self.loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 24.0]))

    def validation_step(self, batch: Arrays, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        x, y = batch
        right = (self(x).argmax(1) == y).float()
        self.log("val/balanced_accuracy", (right[y == 0].mean() + right[y == 1].mean()) / 2)


class RareData(ArrayData):
    val_batch_size = 750


def imbalanced(buggy: bool, seed: int, knobs: Knobs) -> Program:
    module = WeightedClassifier(mlp(20, knobs.width(32), 2), partial(Adam, lr=knobs.lr(1e-3)))
    return module, RareData(partial(rare_class, seed), batch_size=knobs.batch(64), seed=seed), {}


class LogitClassifier(Classifier):
    """Binary cross-entropy of one logit."""

    def training_step(self, batch: Arrays, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.binary_cross_entropy_with_logits(self(x).squeeze(1), y.float())
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Arrays, batch_idx: int) -> None:
        x, y = batch
        logit = self(x).squeeze(1)
        self.log("val/loss", F.binary_cross_entropy_with_logits(logit, y.float()))
        self.log("val/accuracy", ((logit > 0) == y).float().mean())


def dropout(buggy: bool, seed: int, knobs: Knobs) -> Program:
    width = knobs.width(64)
    net = nn.Sequential(
        nn.Linear(30, width),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(width, 1),
    )
    module = LogitClassifier(net, partial(Adam, lr=knobs.lr(1e-3)))
    return module, ArrayData(breast_cancer, batch_size=knobs.batch(32), seed=seed), {}


class NoisyLabels(ArrayData):
    """A fifth of the training labels is drawn anew."""

    def training_samples(self, x: Tensor, y: Tensor) -> TensorDataset:
        generator = torch.Generator().manual_seed(self.seed)
        wrong = torch.rand(len(y), generator=generator) < 0.2
        return TensorDataset(x, torch.where(wrong, torch.randint(10, y.shape, generator=generator), y))


def label_noise(buggy: bool, seed: int, knobs: Knobs) -> Program:
    module = Classifier(mlp(64, knobs.width(64), 10), partial(Adam, lr=knobs.lr(1e-3)))
    return module, NoisyLabels(digits, batch_size=knobs.batch(32), seed=seed), {}


@lru_cache(maxsize=8)
def reviews(seed: int) -> Arrays:
    """Return 2000 bags of 30 words out of 1000; two classes use some words more, some less than Zipf's law."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (2000,), generator=generator)
    opinion = 0.45 * torch.randn(1000, generator=generator)
    frequency = torch.stack([-opinion, opinion]).exp() / torch.arange(1, 1001)
    return torch.multinomial(frequency[y], 30, replacement=True, generator=generator), y


def bag_of_words(buggy: bool, seed: int, knobs: Knobs) -> Program:
    width = knobs.width(16)
    net = nn.Sequential(nn.EmbeddingBag(1000, width), *mlp(width, knobs.width(32), 2))
    module = Classifier(net, partial(Adam, lr=knobs.lr(5e-3)))
    return module, ArrayData(partial(reviews, seed), batch_size=knobs.batch(32), seed=seed), {}


healthy: Callable[..., Case] = partial(Case, family="healthy")

CASES = [
    healthy(id="G01", title="digits, plain net", make=plain, epochs=15, reference=0.95),
    healthy(id="G08", title="friedman, unbounded head", make=regression, epochs=20, metric="val/r2", reference=0.935),
    healthy(
        id="G09",
        title="96:4 classes, weighted loss",
        make=imbalanced,
        epochs=20,
        metric="val/balanced_accuracy",
        reference=0.86,
    ),
    healthy(id="G16", title="breast cancer, logits and dropout", make=dropout, epochs=25, reference=0.99),
    healthy(id="G18", title="digits, a fifth of the labels wrong", make=label_noise, epochs=15, reference=0.94),
    healthy(id="G19", title="bags of words by Zipf's law", make=bag_of_words, epochs=15, reference=0.96),
]
