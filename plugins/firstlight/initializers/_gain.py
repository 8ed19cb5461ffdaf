"""Gains: how much wider a layer's weights must be for the activation that it feeds."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firstlight._require import did_you_mean, require

Activation: TypeAlias = Callable[[Tensor], Tensor]

# With torch's default arguments. A gated unit multiplies a value with f(gate): the function named here is f.
_FUNCTIONS: dict[str, Activation] = {
    "linear": lambda z: z,
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "prelu": lambda z: F.leaky_relu(z, 0.25),
    "rrelu": lambda z: F.leaky_relu(z, (1 / 8 + 1 / 3) / 2),
    "relu_squared": lambda z: F.relu(z).square(),
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "elu": F.elu,
    "celu": F.celu,
    "selu": F.selu,
    "softplus": F.softplus,
    "hardswish": F.hardswish,
    "tanh": torch.tanh,
    "hardtanh": F.hardtanh,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "softsign": F.softsign,
    "logsigmoid": F.logsigmoid,
    "tanhshrink": F.tanhshrink,
    "softshrink": F.softshrink,
    "hardshrink": F.hardshrink,
    "glu": torch.sigmoid,
    "swiglu": F.silu,
    "geglu": F.gelu,
    "reglu": F.relu,
}
GATED = {"sigmoid": "glu", "silu": "swiglu", "gelu": "geglu", "gelu_tanh": "geglu", "relu": "reglu"}
# What a layer can feed, for rules: also the gate of a gated unit.
FEEDS = (*_FUNCTIONS, "gate", "threshold")
# A rule for the family speaks about its members too.
FAMILY = {
    "relu6": "relu",
    "prelu": "relu",
    "rrelu": "relu",
    "threshold": "relu",
    "gelu_tanh": "gelu",
    "celu": "elu",
    "hardtanh": "tanh",
    "softsign": "tanh",
    "hardsigmoid": "sigmoid",
}


def gain(activation: str | Activation, *, backward: bool = False) -> float:
    """Return the factor on ``1 / sqrt(fan)`` for the weights of a layer that feeds ``activation``.

    Args:
        activation: a name; or a layer or function that works element by element, with its own arguments
            (``nn.LeakyReLU(0.2)``).
        backward: keep the second moment of the gradient, not of the signal.

    Shapes: one number out.
    Unit: none.
    Law: ``gain ** 2 * E[f(z) ** 2] == 1`` for z ~ N(0, 1); backward the same with ``f'``. Of gated units
    (``glu``, ``swiglu``, ``geglu``): the product of two independent halves of unit variance.
    Source: He et al. 2015, arXiv:1502.01852, generalized from ReLU by numerical integration.

    Raises:
        ValueError: an unknown activation (the message lists the known ones), one without a finite gain, or
            ``backward`` of a gated unit.

    >>> round(gain("relu"), 4), round(gain("tanh"), 4), round(gain("gelu", backward=True), 4)
    (1.4142, 1.5925, 1.4811)
    >>> round(gain(nn.LeakyReLU(0.2)), 4) == round((2 / (1 + 0.2**2)) ** 0.5, 4)
    True
    """
    if isinstance(activation, str):
        if activation not in _FUNCTIONS:
            known = ", ".join(_FUNCTIONS)
            raise ValueError(f"activation must be one of {known}; got {activation!r}{did_you_mean(activation, FEEDS)}")
        gated = activation in GATED.values()
        require(not (gated and backward), "backward", backward, f"False for the gated unit {activation!r}")
        return _of_name(activation, backward)
    if isinstance(activation, nn.GLU):
        return gain("glu", backward=backward)
    if isinstance(activation, nn.PReLU):  # one slope a channel: their mean square
        return math.sqrt(2.0 / (1.0 + float(activation.weight.detach().double().square().mean())))
    if isinstance(activation, nn.Module):
        activation = copy.deepcopy(activation).to("cpu", torch.float64).eval()
    return _integrate(activation, backward)


@functools.cache
def _of_name(name: str, backward: bool) -> float:
    return _integrate(_FUNCTIONS[name], backward)


def _integrate(function: Activation, backward: bool) -> float:
    z, density = _grid()
    value = _derivative(function, z) if backward else function(z.clone())
    require(value.shape == z.shape, "activation", function, "a function that works element by element")
    second = float((value.detach().double().square() * density).sum())
    require(0.0 < second < math.inf, "activation", function, f"a function with 0 < E[f(z)^2] < inf, not {second:g}")
    return 1.0 / math.sqrt(second)


def _grid() -> tuple[Tensor, Tensor]:
    """Midpoints of cells of width 2**-12 on [-16, 16], and the mass of N(0, 1) in each.

    The jumps and kinks of torch's activations lie on cell borders (0, 0.5, 1, 3, 6), where the rule stays exact to
    1e-8.
    """
    width = 2.0**-12
    z = torch.arange(-16 + width / 2, 16, width, dtype=torch.float64, device="cpu")
    return z, torch.exp(-z.square() / 2) * (width / math.sqrt(2 * math.pi))


def _derivative(function: Activation, z: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad():
        z = z.clone().requires_grad_()
        value = function(z.clone())  # a copy: some activations work in place
        return torch.autograd.grad(value.sum(), z)[0]


@functools.cache
def packed_gain(name: str) -> float:
    """Return the one gain ``s`` of a layer whose output is both halves of a gated unit: ``s^2 E[f(s z)^2] = 1``."""
    function = _FUNCTIONS[name]
    z, density = (part[::16] for part in _grid())
    low, high = 0.1, 10.0
    for _ in range(40):
        middle = math.sqrt(low * high)
        second = middle**2 * float((function(middle * z).square() * density).sum()) * 16
        low, high = (low, middle) if second > 1 else (middle, high)
    return low


@functools.cache
def slope(name: str) -> float:
    """Return how a deviation of the second moment grows from layer to layer under the static gain.

    The map ``q -> gain^2 E[f(sqrt(q) z)^2]`` has the fixed point 1 with the slope ``gain^2 E[z f(z) f'(z)]``. ReLU:
    exactly 1. tanh: below 1, so deep nets settle. GELU and SiLU: above 1, so they die or explode.
    """
    z, density = _grid()
    function = _FUNCTIONS[name]
    return gain(name) ** 2 * float((z * function(z.clone()) * _derivative(function, z) * density).sum())
