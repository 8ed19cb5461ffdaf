"""Healthy: nets that rules made for plain ones take for ill."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.optim import SGD, AdamW

from benchmark.case import Case, Knobs, Program
from benchmark.common import ArrayData, Arrays, Classifier, digits


def images() -> Arrays:
    x, y = digits()
    return x.view(-1, 1, 8, 8), y


def convolutional(buggy: bool, seed: int, knobs: Knobs) -> Program:
    narrow, wide = knobs.width(16), knobs.width(32)
    net = nn.Sequential(
        nn.Conv2d(1, narrow, 3, padding=1),
        nn.BatchNorm2d(narrow),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(narrow, wide, 3, padding=1),
        nn.BatchNorm2d(wide),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * wide, 10),
    )
    module = Classifier(net, partial(SGD, lr=knobs.lr(0.05), momentum=0.9, weight_decay=5e-4))
    return module, ArrayData(images, batch_size=knobs.batch(32), seed=seed), {}


class Block(nn.Module):
    """Adds a tenth of what it computes to what it is given."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.layers = nn.Sequential(nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, features))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * self.layers(self.norm(x))


def residual(buggy: bool, seed: int, knobs: Knobs) -> Program:
    blocks = [Block(64, knobs.width(128)) for _ in range(12)]
    net = nn.Sequential(*blocks, nn.LayerNorm(64), nn.Linear(64, 10))
    module = Classifier(net, partial(AdamW, lr=knobs.lr(1e-3)))
    return module, ArrayData(digits, batch_size=knobs.batch(32), seed=seed), {}


healthy: Callable[..., Case] = partial(Case, family="healthy")

CASES = [
    healthy(id="G02", title="digits, convolutions and batch norm", make=convolutional, epochs=8, reference=0.97),
    healthy(id="G15", title="digits, twelve residual blocks", make=residual, epochs=6, reference=0.98),
]
