"""orthogonal_ and orthogonal_gates_: singular values, in every precision, per gate."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from firstlight.initializers import orthogonal_, orthogonal_gates_


@pytest.mark.parametrize("shape", [(5, 5), (3, 9), (9, 3), (64, 3, 3, 3), (8, 64, 1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_singular_values_are_the_gain(shape, dtype):
    weight = orthogonal_(torch.empty(shape, dtype=dtype), gain=1.5)
    values = torch.linalg.svdvals(weight.flatten(1).double())
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 2e-2)
    assert (values - 1.5).abs().max() < tolerance


def test_the_distribution_does_not_lean():
    """QR without the signs of R gives a first entry that is never positive."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([orthogonal_(torch.empty(2, 2), generator=generator) for _ in range(2000)])
    assert draws.mean(0).abs().max() < 0.06  # std .707, of the mean .016
    assert (torch.linalg.det(draws) > 0).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_torch_and_one_matrix_over_all_gates_fall_short():
    """What the function is for: orthogonal_ on (4H, H) leaves gates with singular values from 0 to .9."""
    weight = torch.empty(4 * 32, 32)
    nn.init.orthogonal_(weight)
    assert torch.linalg.svdvals(weight[:32]).max() < 0.95
    assert orthogonal_gates_(weight) is weight
    for gate in weight.chunk(4):
        assert torch.allclose(torch.linalg.svdvals(gate), torch.ones(32), atol=1e-5)


@pytest.mark.parametrize("layer", [nn.LSTM(3, 8, 2), nn.GRU(3, 8), nn.RNN(3, 8), nn.LSTMCell(3, 8), nn.GRUCell(3, 8)])
def test_modules_change_in_hidden_weights_only(layer):
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    assert orthogonal_gates_(layer, gain=0.9) is layer
    for name, p in layer.named_parameters():
        if "weight_hh" in name:
            for gate in p.detach().chunk(p.shape[0] // 8):
                assert torch.allclose(torch.linalg.svdvals(gate), torch.full((8,), 0.9), atol=1e-5)
        else:
            assert torch.equal(p, before[name])


def test_projected_lstm():
    layer = orthogonal_gates_(nn.LSTM(3, 8, proj_size=4))
    for gate in layer.weight_hh_l0.detach().chunk(4):  # [8, 4]
        assert torch.allclose(gate.T @ gate, torch.eye(4), atol=1e-5)
