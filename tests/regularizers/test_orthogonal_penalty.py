"""OrthogonalPenalty: which matrices, and how far from orthogonal."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from firstlight.regularizers import OrthogonalPenalty


def distance(matrix: torch.Tensor) -> float:
    """The same by singular values: the sum of ``(s**2 - 1)**2`` over the smaller side."""
    return float((torch.linalg.svdvals(matrix.double()).square() - 1).square().sum())


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (4, 4)])
def test_against_singular_values(shape):
    layer = nn.Linear(shape[1], shape[0])
    expected = 0.2 * distance(layer.weight.detach())
    assert OrthogonalPenalty(0.2)(layer).item() == pytest.approx(expected, rel=1e-5)


def test_convolutions_by_output_and_by_group():
    plain = nn.Conv2d(3, 5, 2)
    assert OrthogonalPenalty(1.0)(plain).item() == pytest.approx(distance(plain.weight.detach().flatten(1)), rel=1e-5)
    grouped = nn.Conv2d(4, 6, 3, groups=2)
    parts = grouped.weight.detach().flatten(1).split(3)
    assert OrthogonalPenalty(1.0)(grouped).item() == pytest.approx(sum(map(distance, parts)), rel=1e-5)


def test_transposed_convolutions_by_output():
    layer = nn.ConvTranspose2d(4, 6, 2, groups=2)
    weight = layer.weight.detach()
    parts = [weight[2 * g : 2 * g + 2].transpose(0, 1).flatten(1) for g in range(2)]
    assert OrthogonalPenalty(1.0)(layer).item() == pytest.approx(sum(map(distance, parts)), rel=1e-5)


def test_recurrent_gates_and_attention_projections_one_by_one():
    rnn = nn.LSTM(3, 4, proj_size=2)
    parts = [p for n, w in rnn.named_parameters() if n.startswith(("weight_ih", "weight_hh")) for p in w.split(4)]
    parts.append(rnn.weight_hr_l0)
    expected = sum(distance(part.detach()) for part in parts)
    assert OrthogonalPenalty(1.0)(rnn).item() == pytest.approx(expected, rel=1e-5)
    attention = nn.MultiheadAttention(4, 2)
    parts = [*attention.in_proj_weight.split(4), attention.out_proj.weight]
    expected = sum(distance(part.detach()) for part in parts)
    assert OrthogonalPenalty(1.0)(attention).item() == pytest.approx(expected, rel=1e-5)


def test_embeddings_and_norms_do_not_count():
    assert OrthogonalPenalty(1.0)(nn.ModuleList([nn.Embedding(9, 4), nn.LayerNorm((2, 2))])).item() == 0.0


def test_descent_makes_rows_orthonormal():
    layer = nn.Linear(6, 4, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        OrthogonalPenalty(1.0)(layer).backward()
        optimizer.step()
    torch.testing.assert_close(layer.weight @ layer.weight.T, torch.eye(4), atol=1e-4, rtol=0)
