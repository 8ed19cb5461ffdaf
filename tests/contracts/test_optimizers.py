"""Laws of optimizers, over every row: they descend, they come back from a checkpoint, they do not wander."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from contracts.optimizers_cases import ROWS, Row
from torch import Tensor, nn

OPTIMIZERS = {name: row for name, row in ROWS.items() if row.is_optimizer}


def every_optimizer(function: Any) -> Any:
    return pytest.mark.parametrize("row", OPTIMIZERS.values(), ids=OPTIMIZERS)(function)


def start(row: Row, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(4, 3), (5, 5)] if row.matrices_only else [(4, 3), (5,), ()]
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def bowl(params: list[nn.Parameter]) -> Tensor:
    """Convex, ten times steeper one way than the other, lowest at 2."""
    steepness = [torch.linspace(0.5, 5.0, p.numel()).reshape(p.shape) for p in params]
    return sum((s * (p - 2.0) ** 2).sum() for s, p in zip(steepness, params, strict=True))


@every_optimizer
def test_it_descends_a_convex_bowl(row):
    params = start(row)
    optimizer = row.make(params, **row.options)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / 400))
    before = float(bowl(params).detach())
    for _ in range(400):
        optimizer.zero_grad()
        bowl(params).backward()
        optimizer.step()
        rates.step()
    assert float(bowl(params).detach()) < 1e-3 * before


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_split_run_is_the_whole_run(row, dtype):
    """Bit for bit: what an optimizer knows is in its state, and the state is plain enough for weights_only."""

    def steps(params: list[nn.Parameter], optimizer: torch.optim.Optimizer, number: int) -> None:
        for _ in range(number):
            optimizer.zero_grad()
            bowl(params).backward()
            optimizer.step()

    whole = start(row, dtype)
    steps(whole, row.make(whole, **row.options), 7)
    params = start(row, dtype)
    optimizer = row.make(params, **row.options)
    steps(params, optimizer, 3)
    file = io.BytesIO()
    torch.save([[p.detach() for p in params], optimizer.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    params = [nn.Parameter(weight) for weight in weights]
    optimizer = row.make(params, **row.options)
    optimizer.load_state_dict(state)
    steps(params, optimizer, 4)
    assert all(map(torch.equal, whole, params))


@every_optimizer
def test_without_gradient_and_decay_nothing_moves(row):
    params = start(row)
    optimizer = row.make(params, **(row.options | {"weight_decay": 0.0}))
    for _ in range(3):
        for param in params:
            param.grad = torch.zeros_like(param)
        optimizer.step()
    assert all(map(torch.equal, start(row), params))


@every_optimizer
def test_without_gradient_decay_shrinks_weights(row):
    """In proportion where it is decoupled; through the moments every weight loses as much, however small it is."""
    params = start(row)
    optimizer = row.make(params, **(row.options | {"weight_decay": 0.1, "lr": 0.01}))
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    for before, after in zip(start(row), params, strict=True):
        before, after = before.detach().flatten(), after.detach().flatten()
        assert after.norm() < before.norm()
        shares = 1 - after / before
        assert (float((shares - shares.mean()).abs().max()) < 1e-5) == (row.decoupled or before.numel() == 1)
