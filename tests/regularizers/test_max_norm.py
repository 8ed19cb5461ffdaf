"""max_norm_: the incoming weights of each unit of every layer of torch, against an impulse through the layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from firstlight.regularizers import max_norm_


def test_the_reference_value():
    layer = nn.Linear(2, 2)
    layer.weight.data = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    torch.testing.assert_close(max_norm_(layer, 1.0).weight.data, torch.tensor([[0.6, 0.8], [0.3, 0.4]]))


@pytest.mark.parametrize("layer", [nn.Linear(9, 5), nn.Conv2d(4, 6, 3, groups=2), nn.Embedding(7, 3)], ids=str)
def test_against_torch_renorm(layer):
    """Which divides by the norm + 1e-7."""
    expected = torch.renorm(layer.weight.detach(), 2, 0, 0.4)
    torch.testing.assert_close(max_norm_(layer, 0.4).weight.detach(), expected, rtol=1e-6, atol=0)


def incoming_norms(layer: nn.Module, shape: tuple[int, ...], channel_dim: int) -> torch.Tensor:
    """Return, for each output channel, the norm of its derivatives by all inputs, summed over one output place.

    Measured through the layer, so it knows nothing of how the weight is stored: of all places of a channel, the one
    that sees the whole kernel has the largest norm.
    """
    bare = torch.zeros(1, *shape, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(layer.double(), bare)
    outputs = layer(bare).shape
    per_output = jacobian.reshape(*outputs, -1).norm(dim=-1)
    return per_output.movedim(channel_dim, 0).flatten(1).amax(1)


@pytest.mark.parametrize(
    ("layer", "shape", "channel_dim"),
    [
        (nn.Linear(6, 4, bias=False), (6,), 1),
        (nn.Conv1d(3, 4, 3, bias=False), (3, 7), 1),
        (nn.Conv2d(4, 6, 3, groups=2, bias=False), (4, 5, 5), 1),
        (nn.Conv3d(2, 3, 2, bias=False), (2, 3, 3, 3), 1),
        (nn.ConvTranspose1d(4, 6, 3, bias=False), (4, 7), 1),
        (nn.ConvTranspose1d(4, 6, 3, groups=2, bias=False), (4, 7), 1),
        (nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False), (4, 3, 3), 1),
        (nn.ConvTranspose2d(4, 4, 2, groups=4, bias=False), (4, 3, 3), 1),
        (nn.ConvTranspose3d(2, 3, 2, bias=False), (2, 3, 3, 3), 1),
    ],
    ids=lambda value: str(value) if isinstance(value, nn.Module) else "",
)
def test_the_units_are_those_that_the_layer_computes(layer, shape, channel_dim):
    before = incoming_norms(layer, shape, channel_dim)
    limit = float(before.median())
    assert before.max() > limit, "the test has something to do"
    max_norm_(layer, limit)
    after = incoming_norms(layer, shape, channel_dim)
    torch.testing.assert_close(after, before.clamp(max=limit), rtol=1e-6, atol=0)


def test_memory_formats_do_not_matter():
    layer = nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False)
    other = nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False)
    other.load_state_dict(layer.state_dict())
    other = other.to(memory_format=torch.channels_last)
    torch.testing.assert_close(max_norm_(layer, 0.2).weight, max_norm_(other, 0.2).weight)


def rows(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().flatten(1).norm(dim=1)


@pytest.mark.parametrize(
    ("layer", "names"),
    [
        (nn.Embedding(7, 5), ["weight"]),
        (nn.EmbeddingBag(7, 5), ["weight"]),
        (nn.Bilinear(3, 4, 5), ["weight"]),
        (nn.LSTM(3, 4, num_layers=2, bidirectional=True), ["weight_ih_l0", "weight_hh_l0", "weight_ih_l1_reverse"]),
        (nn.LSTM(3, 4, proj_size=2), ["weight_ih_l0", "weight_hh_l0", "weight_hr_l0"]),
        (nn.GRU(3, 4), ["weight_ih_l0", "weight_hh_l0"]),
        (nn.RNN(3, 4), ["weight_ih_l0", "weight_hh_l0"]),
        (nn.LSTMCell(3, 4), ["weight_ih", "weight_hh"]),
        (nn.GRUCell(3, 4), ["weight_ih", "weight_hh"]),
        (nn.MultiheadAttention(4, 2), ["in_proj_weight", "out_proj.weight"]),
        (nn.MultiheadAttention(4, 2, kdim=3, vdim=5), ["q_proj_weight", "k_proj_weight", "v_proj_weight"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_rows(layer, names):
    """Every row is a gate, a token or a form; biases stay."""
    with torch.no_grad():
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
    before = {name: layer.get_parameter(name).detach().clone() for name in names}
    others = {n: p.detach().clone() for n, p in layer.named_parameters() if "weight" not in n}
    limit = float(torch.cat([rows(value) for value in before.values()]).median())
    max_norm_(layer, limit)
    for name, value in before.items():
        now = layer.get_parameter(name).detach()
        factor = (limit / rows(value)).clamp(max=1.0)
        torch.testing.assert_close(now, value * factor.reshape(-1, *[1] * (value.ndim - 1)))
    assert all(torch.equal(layer.get_parameter(name), value) for name, value in others.items())


def test_weights_within_the_bound_keep_every_bit():
    """Keras's ``w * d / (1e-7 + n)`` takes a norm of .5 to .4917 in 1e5 steps."""
    layer = nn.Linear(16, 8)
    before = layer.weight.detach().clone()
    for _ in range(100):
        max_norm_(layer, float(rows(before).max()))
    assert torch.equal(layer.weight, before)


def test_norms_of_half_weights_do_not_overflow():
    layer = nn.Linear(16, 1).half()
    nn.init.constant_(layer.weight, 4e4)  # the norm is 1.6e5; float16 ends at 65504
    max_norm_(layer, 1.0)
    assert layer.weight.float().norm().item() == pytest.approx(1.0, rel=1e-3)


def test_layers_of_other_packages_are_left_alone():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.full((3, 3), 9.0))

    module = nn.ModuleList([Own(), nn.BatchNorm2d(3), nn.LayerNorm((3, 3))])
    before = [p.detach().clone() for p in module.parameters()]
    max_norm_(module, 0.1)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


@pytest.mark.parametrize(
    "wrap", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm]
)
def test_parametrized_layers_are_refused_by_name(wrap):
    module = nn.Sequential(nn.Linear(2, 2), wrap(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="'1', which is parametrized"):
        max_norm_(module, 0.1)


def test_the_gradient_step_that_follows_is_not_disturbed():
    """The weight stays the leaf that the optimizer holds."""
    layer = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=10.0)
    for _ in range(5):
        optimizer.zero_grad()
        layer(torch.ones(3, 4)).sum().backward()
        optimizer.step()
        max_norm_(layer, 0.7)
        assert rows(layer.weight).max() <= 0.7 * (1 + 1e-6)
    assert layer.weight.requires_grad
    assert layer.weight.is_leaf
