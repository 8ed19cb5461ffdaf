"""Faults of the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import SGD, Adam

from benchmark.case import Case, Knobs, Program
from benchmark.common import ArrayData, Arrays, Classifier, MakeOptimizer, Regressor, digits, friedman, mlp, pretrained


def huge_lr(buggy: bool, seed: int, knobs: Knobs) -> Program:
    optimizer = partial(SGD, lr=knobs.lr(1.0 if buggy else 0.01), momentum=0.9)
    module = Regressor(mlp(10, knobs.width(50), knobs.width(30), 1), optimizer)
    return module, ArrayData(partial(friedman, seed), batch_size=knobs.batch(32), seed=seed), {}


def tiny_lr(buggy: bool, seed: int, knobs: Knobs) -> Program:
    module = Classifier(mlp(64, knobs.width(64), 10), partial(Adam, lr=knobs.lr(1e-6 if buggy else 1e-3)))
    return module, ArrayData(digits, batch_size=knobs.batch(32), seed=seed), {}


class ManualClassifier(Classifier):
    """Steps its optimizer itself."""

    def __init__(self, net: nn.Module, optimizer: MakeOptimizer, *, zero_grad: bool) -> None:
        super().__init__(net, optimizer)
        self.automatic_optimization = False
        self.zero_grad_first = zero_grad

    def training_step(self, batch: Arrays, batch_idx: int) -> Tensor:
        x, y = batch
        optimizer: Any = self.optimizers()
        loss = self.loss(self(x), y)
        if self.zero_grad_first:
            optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.log("train/loss", loss)
        return loss


def no_zero_grad(buggy: bool, seed: int, knobs: Knobs) -> Program:
    net = mlp(64, knobs.width(64), 10)
    module = ManualClassifier(net, partial(SGD, lr=knobs.lr(0.1)), zero_grad=not buggy)
    # one validation, at the end: Lightning zeroes the gradients before each, which hides half of the fault
    kwargs = {"check_val_every_n_epoch": 20}
    return module, ArrayData(digits, batch_size=knobs.batch(32), seed=seed), kwargs


class NewHead(Classifier):
    """Fine-tunes: freezes the first layer and trains a new last one."""

    def __init__(self, net: nn.Sequential, optimizer: MakeOptimizer, *, optimizer_first: bool) -> None:
        super().__init__(net, optimizer)
        if optimizer_first:
            self.built = self.optimizer(self.parameters())
        net[0].requires_grad_(False)
        net[-1] = nn.Linear(net[-1].in_features, net[-1].out_features)
        if not optimizer_first:
            self.built = self.optimizer(self.parameters())

    def configure_optimizers(self) -> Any:
        return self.built


def stale_parameters(buggy: bool, seed: int, knobs: Knobs) -> Program:
    net = pretrained(64, knobs.width(64), 10, seed=seed)
    module = NewHead(net, partial(SGD, lr=knobs.lr(0.1)), optimizer_first=buggy)
    return module, ArrayData(digits, batch_size=knobs.batch(32), seed=seed), {}


fault: Callable[..., Case] = partial(Case, family="optimizer")

CASES = [
    fault(
        id="D10",
        title="friedman, SGD at 1.0",
        origin="Stack Overflow 48385830, 37624102",
        fault="The learning rate is a hundred times too high.",
        fix="a learning rate of 0.01",
        finding="lr_too_high",
        make=huge_lr,
        epochs=30,
        metric="val/r2",
        reference=(-0.8, 0.95),
    ),
    fault(
        id="D11",
        title="digits, Adam at 1e-6",
        origin="TheDeepChecker (TOSEM 2022): low learning rate; Stack Overflow 51181393",
        fault="The learning rate is a thousand times too low.",
        fix="a learning rate of 1e-3",
        finding="lr_too_low",
        make=tiny_lr,
        epochs=20,
        reference=(0.11, 0.95),
    ),
    fault(
        id="D12",
        title="digits, gradients never zeroed",
        origin="Taxonomy of real faults (ICSE 2020)",
        fault="Manual optimization without zero_grad: each step adds up the gradients of all before.",
        fix="zero the gradients before each backward",
        finding="grad_accumulating",
        make=no_zero_grad,
        epochs=20,
        reference=(0.135, 0.97),
    ),
    fault(
        id="D13",
        title="digits, head replaced after the optimizer was built",
        origin="TrainCheck (OSDI 2025): AC-2665; Stack Overflow 60335387",
        fault="The optimizer holds the old head; of the net it sees only a frozen layer.",
        fix="build the optimizer last",
        finding="optimizer_params",
        make=stale_parameters,
        epochs=20,
        reference=(0.12, 0.97),
    ),
]
