"""The numbers of the handbook's page on weight decay, computed; and what the classics do at their first steps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from firstlight import optimizers
from firstlight.optimizers import LAMB, SGD, Adam, AdamW, RMSprop
from firstlight.regularizers import L2Penalty

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "foundations" / "weight-decay.md"
ROWS = [
    [cell.strip(" `") for cell in row.split("|")]
    for row in re.findall(r"^\| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.M)
]
STILL = [row for row in ROWS if hasattr(optimizers, row[0])]
NOISY = [row for row in ROWS if re.fullmatch(r"[\d.]+", row[0])]


def run(make, start, gradient, steps, **options):
    param = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = make([param], **options)
    for step in range(steps):
        param.grad = torch.tensor(gradient(step), dtype=torch.float64)
        optimizer.step()
    return param.detach()


def test_the_page_has_its_tables():
    assert [row[0] for row in STILL] == ["SGD", "AdamW", "Adam", "RMSprop", "LAMB"]
    assert [row[0] for row in NOISY] == ["10", "1", "0.1", "0.01"]


@pytest.mark.parametrize("row", STILL, ids=lambda row: row[0])
def test_decay_without_gradient(row):
    for cell, steps in zip(row[1:], (1, 10), strict=True):
        found = run(getattr(optimizers, row[0]), [1.0, 0.1], lambda _: [0.0, 0.0], steps, lr=0.01, weight_decay=0.1)
        assert found.tolist() == pytest.approx([float(word) for word in cell.split(",")], abs=5.1e-5)


@pytest.mark.parametrize("row", NOISY, ids=lambda row: row[0])
def test_decay_under_noise(row):
    size = float(row[0])
    for cell, make in zip(row[1:], (Adam, AdamW), strict=True):
        found = run(make, [1.0], lambda step: [size * (-1) ** step], 1000, lr=1e-3, weight_decay=0.1)
        assert float(found) == pytest.approx(float(cell), abs=5.1e-4)


def test_decay_through_the_moments_is_a_full_step():
    """p = 1, g = 0, lr = 0.1, weight_decay = 0.1: Adam goes to 0.9 where AdamW goes to 0.99, RMSprop to 0."""
    options = {"lr": 0.1, "weight_decay": 0.1}
    assert float(run(Adam, [1.0], lambda _: [0.0], 1, **options)) == pytest.approx(0.9, abs=1e-6)
    assert float(run(AdamW, [1.0], lambda _: [0.0], 1, **options)) == pytest.approx(0.99, abs=1e-12)
    assert float(run(RMSprop, [1.0], lambda _: [0.0], 1, **options)) == pytest.approx(1e-6, rel=0.1)


@pytest.mark.parametrize("make", [Adam, LAMB])
def test_the_size_of_the_decay_is_lost_where_the_direction_is_normalized(make):
    small, large = (run(make, [1.0], lambda _: [0.0], 1, lr=0.01, weight_decay=d) for d in (1e-3, 1.0))
    assert float(small) == pytest.approx(float(large), abs=1e-6)


def test_sgd_has_l2_and_decay_at_once():
    """The gradient of weight * p ** 2 has a 2."""
    layer = nn.Linear(3, 2, bias=False).double()
    decayed = nn.Linear(3, 2, bias=False).double()
    decayed.load_state_dict(layer.state_dict())
    before = layer.weight.detach().clone()
    L2Penalty(0.05)(layer).backward()
    SGD(layer.parameters(), lr=0.1).step()
    decayed.weight.grad = torch.zeros_like(decayed.weight)
    SGD(decayed.parameters(), lr=0.1, weight_decay=0.1).step()
    torch.testing.assert_close(layer.weight, decayed.weight, rtol=1e-6, atol=0)
    torch.testing.assert_close(layer.weight.detach(), before * (1 - 0.1 * 0.1), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("nesterov", "expected"), [(False, [0.9, 0.71, 0.439]), (True, [0.81, 0.539, 0.1951])])
def test_sgd_with_momentum_starts_undampened(nesterov, expected):
    options = {"lr": 0.1, "momentum": 0.9, "nesterov": nesterov}
    for steps, value in enumerate(expected, start=1):
        assert float(run(SGD, [1.0], lambda _: [1.0], steps, **options)) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(("alpha", "first"), [(0.99, 10.0), (0.9, 10**0.5)])
def test_the_first_step_of_rmsprop(alpha, first):
    found = run(RMSprop, [0.0], lambda _: [1.0], 1, lr=0.1, alpha=alpha)
    assert float(found) == pytest.approx(-0.1 * first, rel=1e-6)


def test_muon_is_torchs_where_torch_has_it():
    assert ("Muon" in optimizers.__all__) == hasattr(torch.optim, "Muon")
