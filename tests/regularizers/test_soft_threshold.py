"""soft_threshold_: the proximal operator of the L1 penalty."""

from __future__ import annotations

import torch
from torch import nn

from firstlight.regularizers import L1Penalty, soft_threshold_


def test_it_minimizes_the_proximal_problem():
    """``(v - w)**2 / 2 + amount |v|``, by search over a fine grid."""
    layer = nn.Linear(9, 1, bias=False)
    layer.weight.data = torch.linspace(-1, 1, 9).unsqueeze(0)
    before = layer.weight.detach().clone().double().squeeze(0)
    soft_threshold_(layer, 0.3)
    grid = torch.linspace(-1, 1, 20001, dtype=torch.float64)
    objective = (grid - before.unsqueeze(1)).square() / 2 + 0.3 * grid.abs()
    torch.testing.assert_close(layer.weight.detach().double().squeeze(0), grid[objective.argmin(1)], atol=1e-4, rtol=0)


def test_it_lands_on_zero_where_the_penalty_never_does():
    """A lasso whose solution is sparse, by the proximal step and by the subgradient."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 10, generator=generator)
    y = x[:, :2] @ torch.tensor([[1.0], [-2.0]])

    def solve(proximal: bool) -> torch.Tensor:
        layer = nn.Linear(10, 1, bias=False)
        nn.init.ones_(layer.weight)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
        penalty = L1Penalty(0.5)
        for _ in range(300):
            optimizer.zero_grad()
            loss = (layer(x) - y).square().mean()
            (loss if proximal else loss + penalty(layer)).backward()
            optimizer.step()
            if proximal:
                soft_threshold_(layer, 0.05 * 0.5)
        return layer.weight.detach().squeeze(0)

    exact, jumping = solve(True), solve(False)
    assert (exact[2:] == 0).all()
    assert (exact[:2] != 0).all()
    assert (jumping[2:] != 0).any()
    torch.testing.assert_close(exact, jumping, atol=0.05, rtol=0)  # they solve the same problem


def test_half_weights():
    layer = nn.Linear(2, 1).to(torch.bfloat16)
    layer.weight.data = torch.tensor([[0.5, -0.125]], dtype=torch.bfloat16)
    assert soft_threshold_(layer, 0.25).weight.tolist() == [[0.25, 0.0]]
