"""Faults of mode and leaks between samples."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

from benchmark.case import Case, Knobs, Program
from benchmark.common import ArrayData, Arrays, Classifier, MakeOptimizer, digits, mlp


def images() -> Arrays:
    x, y = digits()
    return x.view(-1, 8, 8), y


class RowClassifier(Classifier):
    """Reads each image row by row; ``transpose`` before ``reshape`` mixes the rows of different images."""

    def __init__(self, net: nn.Module, optimizer: MakeOptimizer, *, transpose: bool) -> None:
        super().__init__(net, optimizer)
        self.transpose = transpose

    def forward(self, x: Tensor) -> Tensor:
        if self.transpose:
            x = x.transpose(0, 1).reshape(len(x), 8, 8)
        return self.net(x)


def mixed_samples(buggy: bool, seed: int, knobs: Knobs) -> Program:
    width = knobs.width(32)
    net = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Flatten(), nn.Linear(8 * width, 10))
    module = RowClassifier(net, partial(Adam, lr=knobs.lr(1e-3)), transpose=buggy)
    return module, ArrayData(images, batch_size=knobs.batch(32), seed=seed), {}


class DropoutNet(nn.Module):
    """One hidden layer with dropout, which ends with training only if told."""

    def __init__(self, width: int, *, always: bool) -> None:
        super().__init__()
        self.layers = mlp(64, width, 10)
        self.always = always

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layers[:-1](x)
        return self.layers[-1](F.dropout(hidden, 0.7, training=self.always or self.training))


def dropout_in_eval(buggy: bool, seed: int, knobs: Knobs) -> Program:
    module = Classifier(DropoutNet(knobs.width(128), always=buggy), partial(Adam, lr=knobs.lr(1e-3)))
    return module, ArrayData(digits, batch_size=knobs.batch(32), seed=seed), {}


fault: Callable[..., Case] = partial(Case, family="mode")

CASES = [
    fault(
        id="D18",
        title="digits, rows of different images mixed",
        origin="Karpathy, A Recipe for Training Neural Networks (2019): view for transpose",
        fault="A transpose of the batch before a reshape gives each sample the rows of others.",
        fix="leave the batch dimension where it is",
        finding="batch_mixing",
        make=mixed_samples,
        epochs=20,
        reference=(0.095, 0.96),
    ),
    fault(
        id="D19",
        title="digits, dropout in evaluation",
        origin="TrainCheck (OSDI 2025): transformers-33844",
        fault="A functional dropout stays on after training.",
        fix="training=self.training",
        finding="eval_random",
        make=dropout_in_eval,
        epochs=20,
        reference=(0.88, 0.94),
    ),
]
