"""Gains: how much wider a layer's weights must be for the activation that it feeds."""

from __future__ import annotations

import math

from firstlight._require import did_you_mean

# 1 / sqrt(E[f(z)^2]), z ~ N(0, 1): the weight gain that keeps the second moment of the signal. ReLU's is exact (He et
# al. 2015); those of smooth activations are numerical integrals, tested against mpmath. tanh and sigmoid use Glorot's
# 1, which keeps their pre-activations in the linear part.
_GAINS = {
    "linear": 1.0,
    "relu": math.sqrt(2.0),
    "leaky_relu": math.sqrt(2.0 / (1 + 0.01**2)),
    "gelu": 1.53353044,
    "silu": 1.67653247,
    "mish": 1.48684758,
    "elu": 1.24519830,
    "selu": 1.0,
    "softplus": 1.04186684,
    "hardswish": 1.73665721,
    "tanh": 1.0,
    "sigmoid": 1.0,
}


def gain(activation: str) -> float:
    """Return the factor on ``1 / sqrt(fan)`` for the weights of a layer that feeds ``activation``.

    Unit: none. Source: He et al. 2015, arXiv:1502.01852 (ReLU); Glorot and Bengio 2010 (tanh, sigmoid).

    Raises:
        ValueError: an unknown activation; the message lists the known ones.

    >>> round(gain("relu"), 4)
    1.4142
    """
    if activation not in _GAINS:
        known = ", ".join(_GAINS)
        raise ValueError(f"activation must be one of {known}; got {activation!r}{did_you_mean(activation, _GAINS)}")
    return _GAINS[activation]
