"""Rows of regularizers: how each is built, what it leaves alone, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from firstlight.regularizers import (
    ActivationPenalty,
    ElasticNetPenalty,
    L1Penalty,
    L2Penalty,
    OrthogonalPenalty,
    max_norm_,
    soft_threshold_,
)


@dataclass(frozen=True)
class Row:
    """One regularizer: a penalty (``weight`` to Module), or a step that changes weights in place."""

    fill: Callable[[Tensor], Any]  # fills a weight so that the regularizer has nothing to do
    penalty: Callable[[float], nn.Module] | None = None
    step: Callable[[nn.Module], nn.Module] | None = None


ROWS: dict[str, Row] = {
    "ActivationPenalty": Row(nn.init.zeros_, penalty=lambda weight: ActivationPenalty(weight, layers=["0", "2"])),
    "ElasticNetPenalty": Row(nn.init.zeros_, penalty=lambda weight: ElasticNetPenalty(weight, 2 * weight)),
    "L1Penalty": Row(nn.init.zeros_, penalty=L1Penalty),
    "L2Penalty": Row(nn.init.zeros_, penalty=L2Penalty),
    "OrthogonalPenalty": Row(nn.init.orthogonal_, penalty=OrthogonalPenalty),
    "max_norm_": Row(lambda weight: nn.init.constant_(weight, 0.01), step=lambda module: max_norm_(module, 0.3)),
    "soft_threshold_": Row(nn.init.zeros_, step=lambda module: soft_threshold_(module, 0.05)),
}


def network() -> nn.Sequential:
    """Return a small network for inputs ``[N, 2, 4, 4]``."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3), nn.ReLU(), nn.Linear(3, 3)
    )


def _weight_normed() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))


def _returns_a_pair() -> None:
    net = nn.ModuleDict({"rnn": nn.LSTM(2, 2)})
    ActivationPenalty(0.1, ["rnn"]).attach(net)
    net["rnn"](torch.zeros(1, 1, 2))


BAD: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: L1Penalty(-1.0), ValueError, "weight must be zero or more, and finite; got -1.0"),
    (lambda: L2Penalty(float("nan")), ValueError, "weight must be zero or more.*got nan"),
    (lambda: ElasticNetPenalty(0.1, -2.0), ValueError, "l2 must be zero or more.*got -2.0"),
    (lambda: ElasticNetPenalty(float("inf"), 0.1), ValueError, "l1 must be zero or more.*got inf"),
    (lambda: OrthogonalPenalty(-0.5), ValueError, "weight must be zero or more.*got -0.5"),
    (lambda: ActivationPenalty(-0.1, ["0"]), ValueError, "weight must be zero or more.*got -0.1"),
    (lambda: ActivationPenalty(0.1, []), ValueError, "layers must be at least one name of a layer"),
    (lambda: ActivationPenalty(0.1, "0"), TypeError, "layers must be a list of names; got '0'"),
    (lambda: ActivationPenalty(0.1, ["6"]).attach(network()), ValueError, "name of a layer of Sequential.*got '6'"),
    (lambda: ActivationPenalty(0.1, ["0"])(network()), ValueError, r"call penalty.attach\(module\) once"),
    (
        lambda: (net := network(), ActivationPenalty(0.1, ["0"]).attach(net)(net)),
        ValueError,
        "run forward, with gradients, before the penalty",
    ),
    (_returns_a_pair, TypeError, "the output of 'rnn' must be a tensor; got 'tuple'"),
    (lambda: max_norm_(network(), 0.0), ValueError, "limit must be above zero, and finite; got 0.0"),
    (lambda: max_norm_(_weight_normed(), 1.0), ValueError, "without parametrized layers.*remove the parametrization"),
    (lambda: max_norm_(nn.LazyLinear(2), 1.0), ValueError, "materialized by one forward pass before max_norm_"),
    (lambda: soft_threshold_(network(), -0.1), ValueError, "amount must be zero or more, and finite; got -0.1"),
    (lambda: soft_threshold_(_weight_normed(), 0.1), ValueError, "parametrized"),
]
