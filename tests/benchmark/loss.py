"""Faults of the loss and of what it is given."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

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


def softmax_twice(buggy: bool, seed: int, knobs: Knobs) -> Program:
    net = mlp(64, knobs.width(32), 10)
    if buggy:
        net.append(nn.Softmax(dim=1))
    return Classifier(net, partial(SGD, lr=knobs.lr(0.1))), ArrayData(digits, batch_size=knobs.batch(32), seed=seed), {}


class ProbabilityClassifier(Classifier):
    """Binary cross-entropy of a probability."""

    def __init__(self, net: nn.Module, optimizer: MakeOptimizer) -> None:
        super().__init__(net, optimizer)
        self.loss = nn.BCELoss()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(1)

    def training_step(self, batch: Arrays, batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.loss(self(x), y.float())
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Arrays, batch_idx: int) -> None:
        x, y = batch
        probability = self(x)
        self.log("val/loss", self.loss(probability, y.float()))
        self.log("val/accuracy", ((probability > 0.5) == y).float().mean())


def softmax_of_one(buggy: bool, seed: int, knobs: Knobs) -> Program:
    net = mlp(30, knobs.width(16), 1).append(nn.Softmax(dim=1) if buggy else nn.Sigmoid())
    module = ProbabilityClassifier(net, partial(Adam, lr=knobs.lr(1e-3)))
    return module, ArrayData(breast_cancer, batch_size=knobs.batch(32), seed=seed), {}


def wide_friedman(seed: int) -> Arrays:
    x, y = friedman(seed)
    return x, 3 * y


def sigmoid_head(buggy: bool, seed: int, knobs: Knobs) -> Program:
    net = mlp(10, knobs.width(32), 1)
    if buggy:
        net.append(nn.Sigmoid())
    module = Regressor(net, partial(Adam, lr=knobs.lr(5e-3)))
    return module, ArrayData(partial(wide_friedman, seed), batch_size=knobs.batch(32), seed=seed), {}


class OwnSquaredError(Regressor):
    """Writes the squared error out; ``[B, 1] - [B]`` is a ``[B, B]``."""

    def __init__(self, net: nn.Module, optimizer: MakeOptimizer, *, align: bool) -> None:
        super().__init__(net, optimizer)
        self.align = align

    def training_step(self, batch: Arrays, batch_idx: int) -> Tensor:
        x, y = batch
        if self.align:
            y = y[:, None]
        loss = torch.mean((self(x) - y) ** 2)
        self.log("train/loss", loss)
        return loss


def broadcast(buggy: bool, seed: int, knobs: Knobs) -> Program:
    module = OwnSquaredError(mlp(10, knobs.width(32), 1), partial(Adam, lr=knobs.lr(5e-3)), align=not buggy)
    return module, ArrayData(partial(friedman, seed), batch_size=knobs.batch(32), seed=seed), {}


def ascending(buggy: bool, seed: int, knobs: Knobs) -> Program:
    module = Classifier(mlp(64, knobs.width(32), 10), partial(SGD, lr=knobs.lr(0.1), maximize=buggy))
    return module, ArrayData(digits, batch_size=knobs.batch(32), seed=seed), {}


fault: Callable[..., Case] = partial(Case, family="loss")

CASES = [
    fault(
        id="D05",
        title="digits, softmax twice",
        origin="TheDeepChecker (TOSEM 2022): redundant softmax",
        fault="The net ends in a softmax, and cross-entropy takes another.",
        fix="return the logits",
        finding="softmax_twice",
        make=softmax_twice,
        epochs=20,
        reference=(0.51, 0.96),
    ),
    fault(
        id="D06",
        title="breast cancer, softmax of one unit",
        origin="Stack Overflow 31880720, 42800203",
        fault="A softmax over a single unit is always 1.",
        fix="end in a sigmoid",
        finding="constant_output",
        make=softmax_of_one,
        epochs=20,
        reference=(0.60, 0.99),
    ),
    fault(
        id="D07",
        title="friedman, sigmoid on the output",
        origin="Stack Overflow 48221692",
        fault="The output lies in (0, 1), the targets reach from -7 to 8.",
        fix="leave the sigmoid out",
        finding="target_out_of_range",
        make=sigmoid_head,
        epochs=40,
        metric="val/r2",
        reference=(0.205, 0.94),
    ),
    fault(
        id="D08",
        title="friedman, broadcast loss",
        origin="TheDeepChecker (TOSEM 2022): wrong loss",
        fault="Predictions [B, 1] minus targets [B] compare each sample with every target of the batch.",
        fix="give the targets the shape of the predictions",
        finding="loss_not_per_sample",
        make=broadcast,
        epochs=40,
        metric="val/r2",
        reference=(0.03, 0.97),
    ),
    fault(
        id="D09",
        title="digits, loss maximized",
        origin="TheDeepChecker (TOSEM 2022): flipped sign",
        fault="The optimizer climbs the loss.",
        fix="minimize",
        finding="ascending",
        make=ascending,
        epochs=15,
        reference=(0.09, 0.915),
    ),
]
