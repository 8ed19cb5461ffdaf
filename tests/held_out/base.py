"""What the programs share: data, a DataModule, a classifier, a regressor, and the two lists."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from sklearn import datasets as sk
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def split(x, y, seed, frac=0.25, strat=None):
    return train_test_split(x, y, test_size=frac, random_state=seed, stratify=strat)


def digits(seed):
    x, y = sk.load_digits(return_X_y=True)
    a, b, c, d = split((x / 16).astype("float32"), y, seed, strat=y)
    return tuple(map(torch.as_tensor, (a, b, c, d)))


def table(load, seed, reg=False):
    x, y = load(return_X_y=True)
    a, b, c, d = split(x, y, seed, strat=None if reg else y)
    m, s = a.mean(0), a.std(0) + 1e-8
    a, b = (a - m) / s, (b - m) / s
    if reg:
        m, s = c.mean(), c.std()
        c, d = (c - m) / s, (d - m) / s
        c, d = c.astype("float32"), d.astype("float32")
    return tuple(torch.as_tensor(v) for v in (a.astype("float32"), b.astype("float32"), c, d))


def friedman(seed, n=800, noise=0.5):
    x, y = sk.make_friedman1(n, noise=noise, random_state=seed)
    y = (y - y.mean()) / y.std()
    return tuple(torch.as_tensor(v.astype("float32")) for v in split(x, y, seed))


class DM(LightningDataModule):
    def __init__(self, train, val, batch_size=32, shuffle=True, **kw):
        super().__init__()
        self.train, self.val, self.bs, self.shuffle, self.kw = train, val, batch_size, shuffle, kw

    def train_dataloader(self):
        return DataLoader(self.train, self.bs, shuffle=self.shuffle, **self.kw)

    def val_dataloader(self):
        return DataLoader(self.val, 64, collate_fn=self.kw.get("collate_fn"))


def dm(data, bs=32, **kw):
    a, b, c, d = data
    return DM(TensorDataset(a, c), TensorDataset(b, d), bs, **kw)


def mlp(*sizes, act=nn.ReLU, end=()):
    layers = []
    for i, o in pairwise(sizes):
        layers += [nn.Linear(i, o), act()]
    return nn.Sequential(*layers[:-1], *end)


class Classifier(LightningModule):
    def __init__(self, net, lr=1e-3):
        super().__init__()
        self.net = net
        self.lr = lr

    def forward(self, x):
        return self.net(x)

    def loss(self, out, y):
        return F.cross_entropy(out, y)

    def training_step(self, batch, i):
        x, y = batch
        loss = self.loss(self(x), y)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, i):
        x, y = batch
        out = self(x)
        self.log("val/score", (out.argmax(1) == y).float().mean())
        self.log("val/loss", self.loss(out, y))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.lr)


class Regressor(Classifier):
    def loss(self, out, y):
        return F.mse_loss(out.squeeze(-1), y)

    def validation_step(self, batch, i):
        x, y = batch
        out = self(x)
        self.log("val/loss", self.loss(out, y))
        self.log("val/score", 1 - F.mse_loss(out.squeeze(-1), y) / y.var())


@dataclass(frozen=True)
class Program:
    """A program; ``make(seed)``, of a fault ``make(bug, seed)``, gives module, data, arguments of the Trainer."""

    title: str
    make: Callable[..., Any]
    epochs: int
    kwargs: dict[str, Any]
    good: float = 0.0  # the least score of a healthy one
    # checks that would name the fault, written down before any was run; some do not exist
    causes: list[str] = field(default_factory=list)


HEALTHY: dict[str, Program] = {}
FAULTY: dict[str, Program] = {}


def healthy(title: str, good: float, epochs: int = 10, **kwargs: Any) -> Callable[..., Any]:
    def keep(make: Callable[..., Any]) -> Callable[..., Any]:
        HEALTHY[make.__name__] = Program(title, make, epochs, kwargs, good=good)
        return make

    return keep


def faulty(title: str, causes: str, epochs: int = 10, **kwargs: Any) -> Callable[..., Any]:
    def keep(make: Callable[..., Any]) -> Callable[..., Any]:
        FAULTY[make.__name__] = Program(title, make, epochs, kwargs, causes=causes.split())
        return make

    return keep
