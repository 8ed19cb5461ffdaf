"""Faults of initialization and architecture."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn
from torch.optim import SGD, Adam

from benchmark.case import Case, Knobs, Program
from benchmark.common import ArrayData, Classifier, circles, digits, mlp, moons


def symmetric(buggy: bool, seed: int, knobs: Knobs) -> Program:
    net = mlp(64, knobs.width(64), knobs.width(64), 10)
    if buggy:
        for param in net.parameters():
            nn.init.constant_(param, 0.01)
    module = Classifier(net, partial(Adam, lr=knobs.lr(1e-3)))
    return module, ArrayData(digits, batch_size=knobs.batch(32), seed=seed), {}


def standard_normal(buggy: bool, seed: int, knobs: Knobs) -> Program:
    width = knobs.width(256)
    net = mlp(64, width, width, width, 10)
    if buggy:
        for param in net.parameters():
            nn.init.normal_(param)
    module = Classifier(net, partial(Adam, lr=knobs.lr(1e-3)))
    return module, ArrayData(digits, batch_size=knobs.batch(32), seed=seed), {}


def deep_sigmoid(buggy: bool, seed: int, knobs: Knobs) -> Program:
    net = mlp(2, *[knobs.width(16)] * 12, 2, activation=nn.Sigmoid if buggy else nn.ReLU)
    if not buggy:
        for layer in net:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
    module = Classifier(net, partial(Adam, lr=knobs.lr(3e-3)))
    return module, ArrayData(partial(circles, seed), batch_size=knobs.batch(32), seed=seed), {}


def dead_units(buggy: bool, seed: int, knobs: Knobs) -> Program:
    net = mlp(2, knobs.width(32), knobs.width(32), 2)
    for layer in (net[0], net[2]):
        nn.init.constant_(layer.bias, -6.0 if buggy else 0.0)
    module = Classifier(net, partial(SGD, lr=knobs.lr(0.1)))
    return module, ArrayData(partial(moons, seed), batch_size=knobs.batch(32), seed=seed), {}


fault: Callable[..., Case] = partial(Case, family="init")

CASES = [
    fault(
        id="D14",
        title="digits, every parameter 0.01",
        origin="TheDeepChecker (TOSEM 2022): wrong initialization, IPS-17",
        fault="All units of a layer start the same and stay the same.",
        fix="torch's own initialization",
        finding="symmetric_init",
        make=symmetric,
        epochs=20,
        reference=(0.21, 0.96),
    ),
    fault(
        id="D15",
        title="digits, every parameter from N(0, 1)",
        origin="TheDeepChecker (TOSEM 2022): IPS-4",
        fault="Weights of standard deviation 1 are eleven times what keeps the scale through layers of 256.",
        fix="torch's own initialization",
        finding="init_loss",
        make=standard_normal,
        epochs=10,
        reference=(0.90, 0.965),
    ),
    fault(
        id="D16",
        title="circles, twelve layers of sigmoids",
        origin="AutoTrainer (ICSE 2021): Circle; Stack Overflow 45442843",
        fault="The slope of a sigmoid is at most a quarter: behind twelve of them the gradient is next to nothing.",
        fix="ReLU with Kaiming initialization",
        finding="vanishing",
        make=deep_sigmoid,
        epochs=40,
        reference=(0.49, 0.99),
    ),
    fault(
        id="D17",
        title="moons, hidden biases of -6",
        origin="AutoTrainer (ICSE 2021): dying ReLU; Stack Overflow 50481178",
        fault="No hidden unit is ever above zero.",
        fix="biases of zero",
        finding="dead_units",
        make=dead_units,
        epochs=30,
        reference=(0.48, 0.98),
    ),
]
