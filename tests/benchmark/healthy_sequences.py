"""Healthy: sequences."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from benchmark.case import Case, Knobs, Program
from benchmark.common import ArrayData, Arrays, r2


@lru_cache(maxsize=8)
def waves(seed: int) -> Arrays:
    """Return 800 noisy sines of 30 steps, and the same one step later."""
    generator = torch.Generator().manual_seed(seed)
    frequency = 0.2 + 0.6 * torch.rand(800, 1, generator=generator)
    phase = 2 * math.pi * torch.rand(800, 1, generator=generator)
    series = torch.sin(frequency * torch.arange(31) + phase)
    series = (series + 0.02 * torch.randn(series.shape, generator=generator)).unsqueeze(2)
    return series[:, :-1], series[:, 1:]


class Forecaster(LightningModule):
    """Predicts the next value at each step."""

    def __init__(self, width: int, lr: float) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, width, batch_first=True)
        self.head = nn.Linear(width, 1)
        self.criterion = nn.MSELoss()
        self.lr = lr

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0])

    def training_step(self, batch: Arrays, batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.criterion(self(x), y)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Arrays, batch_idx: int) -> None:
        x, y = batch
        prediction = self(x)
        self.log("val/loss", self.criterion(prediction, y))
        self.log("val/r2", r2(prediction.flatten(), y.flatten()))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def forecast(buggy: bool, seed: int, knobs: Knobs) -> Program:
    module = Forecaster(knobs.width(32), knobs.lr(5e-3))
    return module, ArrayData(partial(waves, seed), batch_size=knobs.batch(32), seed=seed), {"gradient_clip_val": 1.0}


VOCABULARY, LENGTH = 20, 25


@lru_cache(maxsize=1)
def chain() -> Tensor:
    """Return the probabilities of the next symbol after each: most of each row on a few."""
    gamma = torch.distributions.Gamma(torch.full((VOCABULARY, VOCABULARY), 0.15), 1.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        draws = gamma.sample()
    return draws / draws.sum(1, keepdim=True)


@lru_cache(maxsize=8)
def text(seed: int) -> Arrays:
    """Return 600 texts of a Markov chain, and the same one symbol later."""
    generator = torch.Generator().manual_seed(seed)
    symbols = [torch.randint(VOCABULARY, (600,), generator=generator)]
    for _ in range(LENGTH - 1):
        symbols.append(torch.multinomial(chain()[symbols[-1]], 1, generator=generator).squeeze(1))
    tokens = torch.stack(symbols, dim=1)
    return tokens[:, :-1], tokens[:, 1:]


class LanguageModel(LightningModule):
    """One causal transformer layer."""

    def __init__(self, width: int, lr: float, steps: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Parameter(0.02 * torch.randn(LENGTH - 1, width))
        self.layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LENGTH - 1))

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens) + self.positions
        return self.head(self.norm(self.layer(hidden, src_mask=self.mask, is_causal=True)))

    def training_step(self, batch: Arrays, batch_idx: int) -> Tensor:
        tokens, following = batch
        loss = F.cross_entropy(self(tokens).flatten(0, 1), following.flatten())
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Arrays, batch_idx: int) -> None:
        tokens, following = batch
        self.log("val/loss", F.cross_entropy(self(tokens).flatten(0, 1), following.flatten()))

    def factor(self, step: int) -> float:
        """Return the share of the rate: 50 steps of warm-up, then half a cosine."""
        if step < 50:
            return step / 50
        return 0.5 * (1 + math.cos(math.pi * (step - 50) / max(1, self.hparams.steps - 50)))

    def configure_optimizers(self) -> Any:
        optimizer = AdamW(self.parameters(), lr=self.hparams.lr)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, self.factor), "interval": "step"},
        }


def language(buggy: bool, seed: int, knobs: Knobs) -> Program:
    batch_size = knobs.batch(32)
    module = LanguageModel(knobs.width(32), knobs.lr(3e-3), steps=20 * math.ceil(450 / batch_size))
    return module, ArrayData(partial(text, seed), batch_size=batch_size, seed=seed), {"gradient_clip_val": 1.0}


healthy: Callable[..., Case] = partial(Case, family="healthy")

CASES = [
    healthy(id="G03", title="sines, LSTM", make=forecast, epochs=15, metric="val/r2", reference=0.99),
    healthy(
        id="G04",
        title="text of a Markov chain, causal transformer",
        make=language,
        epochs=20,
        metric="val/loss",
        direction="min",
        reference=1.615,
    ),
]
