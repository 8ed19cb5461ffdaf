"""Gains against numerical integrals of high precision, forward and backward, and what deep nets make of them."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from firstlight.initializers import InitPlan, InitRule, gain, initialize_
from firstlight.initializers._feeds import BY_FUNCTION, activation_name
from firstlight.initializers._gain import packed_gain, slope


def gelu_tanh(z):
    return z / 2 * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (z + mpmath.mpf("0.044715") * z**3)))


SELU_SCALE, SELU_ALPHA = mpmath.mpf("1.0507009873554805"), mpmath.mpf("1.6732632423543772")
# Name: the function, and the value of components' table to five places where it has one.
FORWARD = {
    "linear": (lambda z: z, 1.0),
    "relu": (lambda z: max(z, 0), 1.41421),
    "relu6": (lambda z: min(max(z, 0), 6), None),
    "leaky_relu": (lambda z: z if z > 0 else z / 100, None),
    "prelu": (lambda z: z if z > 0 else z / 4, None),
    "rrelu": (lambda z: z if z > 0 else z * mpmath.mpf(11) / 48, None),
    "relu_squared": (lambda z: max(z, 0) ** 2, 0.81650),
    "gelu": (lambda z: z * mpmath.ncdf(z), 1.53353),
    "gelu_tanh": (gelu_tanh, 1.53358),
    "silu": (lambda z: z / (1 + mpmath.exp(-z)), 1.67653),
    "mish": (lambda z: z * mpmath.tanh(mpmath.log1p(mpmath.exp(z))), 1.48685),
    "elu": (lambda z: z if z > 0 else mpmath.expm1(z), 1.24520),
    "celu": (lambda z: z if z > 0 else mpmath.expm1(z), 1.24520),
    "selu": (lambda z: SELU_SCALE * (z if z > 0 else SELU_ALPHA * mpmath.expm1(z)), 1.0),
    "tanh": (mpmath.tanh, 1.59254),
    "hardtanh": (lambda z: min(max(z, -1), 1), None),
    "sigmoid": (lambda z: 1 / (1 + mpmath.exp(-z)), 1.84623),
    "hardsigmoid": (lambda z: min(max(z + 3, 0), 6) / 6, None),
    "softplus": (lambda z: mpmath.log1p(mpmath.exp(z)), 1.04187),
    "hardswish": (lambda z: z * min(max(z + 3, 0), 6) / 6, 1.73666),
    "softsign": (lambda z: z / (1 + abs(z)), None),
    "logsigmoid": (lambda z: -mpmath.log1p(mpmath.exp(-z)), None),
    "tanhshrink": (lambda z: z - mpmath.tanh(z), None),
    "softshrink": (lambda z: mpmath.sign(z) * max(abs(z) - 0.5, 0), None),
    "hardshrink": (lambda z: z if abs(z) > 0.5 else 0, None),
    "glu": (lambda z: 1 / (1 + mpmath.exp(-z)), 1.84623),
    "swiglu": (lambda z: z / (1 + mpmath.exp(-z)), 1.67653),
    "geglu": (lambda z: z * mpmath.ncdf(z), 1.53353),
    "reglu": (lambda z: max(z, 0), 1.41421),
}
BORDERS = [-12, -6, -3, -1, -0.5, 0, 0.5, 1, 3, 6, 12]


@pytest.mark.parametrize("name", FORWARD)
def test_gains_keep_the_second_moment(name):
    function, listed = FORWARD[name]
    second = mpmath.quad(lambda z: function(z) ** 2 * mpmath.npdf(z), BORDERS)
    assert gain(name) == pytest.approx(float(1 / mpmath.sqrt(second)), rel=1e-6)
    assert listed is None or gain(name) == pytest.approx(listed, abs=6e-6)


BACKWARD = {
    "relu": 1.41421,
    "gelu": 1.48111,
    "gelu_tanh": 1.48117,
    "silu": 1.62332,
    "mish": 1.44476,
    "elu": 1.22343,
    "selu": 0.96603,
    "tanh": 1.46741,
    "sigmoid": 4.72265,
    "softplus": 1.84623,
    "hardswish": 1.67008,
    "relu_squared": 0.70711,
}


@pytest.mark.parametrize("name", BACKWARD)
def test_gains_of_the_gradient(name):
    function = FORWARD[name][0]
    second = mpmath.quad(lambda z: mpmath.diff(function, z) ** 2 * mpmath.npdf(z), [-8, -3, -1e-9, 1e-9, 3, 8])
    assert gain(name, backward=True) == pytest.approx(BACKWARD[name], abs=6e-6)
    assert gain(name, backward=True) == pytest.approx(float(1 / mpmath.sqrt(second)), rel=1e-5)


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.ReLU(inplace=True), "relu"),
        (nn.GELU(approximate="tanh"), "gelu_tanh"),
        (nn.SiLU(inplace=True), "silu"),
        (nn.RReLU(), "rrelu"),
        (nn.PReLU(7), "prelu"),
        (nn.GLU(), "glu"),
        (nn.Hardtanh(), "hardtanh"),
        (F.mish, "mish"),
        (torch.tanh, "tanh"),
    ],
)
def test_layers_and_functions_have_the_gain_of_their_name(layer, name):
    assert gain(layer) == pytest.approx(gain(name), rel=1e-12)


def test_arguments_of_a_layer_count():
    assert gain(nn.LeakyReLU(0.2)) == pytest.approx(math.sqrt(2 / 1.04), rel=1e-8)
    second = mpmath.quad(lambda z: (z if z > 0 else 2 * mpmath.expm1(z)) ** 2 * mpmath.npdf(z), [-12, 0, 12])
    assert gain(nn.ELU(2.0)) == pytest.approx(float(1 / mpmath.sqrt(second)), rel=1e-6)
    assert gain(nn.Hardtanh(-100, 100)) == pytest.approx(1.0)


def test_every_elementwise_activation_of_torch_has_a_gain():
    """All of nn.modules.activation, but for those that are no functions of one number."""
    other = {nn.MultiheadAttention, nn.Softmax, nn.Softmax2d, nn.Softmin, nn.LogSoftmax}
    module = nn.modules.activation
    for name in module.__all__:
        cls = getattr(module, name)
        if cls in other:
            continue
        layer = cls(0.0, 0.0) if cls is nn.Threshold else cls()
        assert activation_name(layer) is not None, name
        assert 0 < gain(layer) < math.inf
    for function in (torch.relu, F.relu, F.gelu, torch.Tensor.tanh, F.silu, F.leaky_relu_, F.hardswish, F.prelu):
        assert function in BY_FUNCTION


@pytest.mark.parametrize(("name", "unit"), [("glu", torch.sigmoid), ("swiglu", F.silu), ("geglu", F.gelu)])
def test_one_gain_for_both_halves_of_a_gated_unit(name, unit):
    """The gain of independent halves of unit variance is for the value alone: on both it is too much."""
    s = packed_gain(name)
    value, gate = torch.randn(2, 10**6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert float((s * value * unit(s * gate)).square().mean()) == pytest.approx(1.0, rel=0.02)
    assert float((gain(name) * value * unit(gate)).square().mean()) == pytest.approx(1.0, rel=0.02)


def test_fixed_points_are_stable_or_not():
    def growth(function, q):
        return mpmath.quad(lambda z: function(mpmath.sqrt(q) * z) ** 2 * mpmath.npdf(z), BORDERS)

    for name in ("relu", "gelu", "silu", "tanh"):
        function, h = FORWARD[name][0], mpmath.mpf("1e-4")
        numeric = (growth(function, 1 + h) - growth(function, 1 - h)) / (2 * h) / growth(function, 1)
        assert slope(name) == pytest.approx(float(numeric), rel=1e-4)
    assert slope("relu") == pytest.approx(1.0)
    assert slope("tanh") < 1 < slope("gelu") < slope("silu") < slope("relu_squared")


def second_moment(activation: type[nn.Module], factor: float, width: int = 1024, layers: int = 50) -> float:
    """The mean square before the last activation of a plain net, with input of the scale of an activation's output."""
    torch.manual_seed(0)
    blocks = [part for _ in range(layers) for part in (nn.Linear(width, width), activation())]
    net = nn.Sequential(*blocks[:-1])
    initialize_(net, InitPlan([InitRule("he", gain=factor)]))
    with torch.no_grad():
        signal = torch.randn(64, width) / factor
        return float(net(signal).square().mean())


@pytest.mark.parametrize(
    ("activation", "factor", "low", "high"),
    [
        (nn.ReLU, gain("relu"), 0.5, 2.0),
        (nn.Tanh, gain("tanh"), 0.97, 1.03),
        (nn.Tanh, 5 / 3, 1.15, 1.21),
        (nn.GELU, gain("gelu"), 50, 250),
        (nn.SiLU, gain("silu"), 5e4, 2.5e5),
        (nn.GELU, math.sqrt(2), 0.0, 1e-4),
        (nn.GELU, 1.0, 0.0, 1e-4),
    ],
)
def test_fifty_plain_layers(activation, factor, low, high):
    """Reference: relu 0.7-1.05; tanh 1.5925 1.00, 5/3 1.18; GELU 71-159, with sqrt(2) or 1 dead; SiLU 8e4-1.6e5."""
    assert low <= second_moment(activation, factor) <= high
