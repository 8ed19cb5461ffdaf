"""Rows of the table of cases: optimizers, and what groups their parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import firstlight.optimizers as room
from firstlight.optimizers import LAMB, SGD, Adafactor, Adam, AdamW, RMSprop, param_groups


@dataclass(frozen=True)
class Row:
    """How an optimizer is built, and which laws it may be held to."""

    make: Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)  # with which it descends the bowl
    is_optimizer: bool = True
    decoupled: bool = True  # decay shrinks weights in proportion; false: it goes through the moments
    matrices_only: bool = False


ROWS: dict[str, Row] = {
    "LAMB": Row(LAMB, {"lr": 0.05, "weight_decay": 0.0}),
    "SGD": Row(SGD, {"lr": 0.05, "momentum": 0.9}),
    "RMSprop": Row(RMSprop, {"lr": 0.05}, decoupled=False),
    "Adam": Row(Adam, {"lr": 0.1}, decoupled=False),
    "AdamW": Row(AdamW, {"lr": 0.1, "weight_decay": 0.0}),
    "Adafactor": Row(Adafactor, {"lr": 0.3, "weight_decay": 0.0}),
    "param_groups": Row(param_groups, is_optimizer=False),
}
if hasattr(room, "Muon"):
    ROWS["Muon"] = Row(room.Muon, {"lr": 0.1, "weight_decay": 0.0}, matrices_only=True)


def _weights() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(2))]


def _bag(**options: Any) -> Any:
    return param_groups(nn.Linear(3, 2), **({"weight_decay": 0.1} | options))


# What is wrong, and what the error says of value, expectation and fix.
BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: LAMB(_weights(), lr=-0.1), ValueError, r"lr must be a finite number, zero or more; got -0\.1"),
    (lambda: LAMB(_weights(), lr=float("nan")), ValueError, "lr must be a finite number, zero or more; got nan"),
    (lambda: LAMB(_weights(), lr=torch.ones(2)), ValueError, r"lr must be a number or a tensor of one element"),
    (lambda: LAMB(_weights(), betas=(0.9, 1.0)), ValueError, r"betas must be two numbers in \[0, 1\)"),
    (lambda: LAMB(_weights(), betas=(0.9,)), ValueError, r"betas must be two numbers in \[0, 1\)"),
    (lambda: LAMB(_weights(), eps=-1e-6), ValueError, "eps must be zero or more, such as 1e-6"),
    (lambda: LAMB(_weights(), weight_decay=-0.1), ValueError, "weight_decay must be zero or more"),
    (lambda: LAMB(_weights(), phi=(2.0, 1.0)), ValueError, "phi must be None, or the lowest and the highest norm"),
    (lambda: _bag(weight_decay=-1.0), ValueError, "weight_decay must be zero or more; got -1.0"),
    (lambda: _bag(no_decay=["nothing*"]), ValueError, r"no_decay must be a pattern that matches a name"),
    (lambda: _bag(no_decay="bias"), TypeError, "no_decay must be a list of names"),
    (lambda: _bag(layer_decay=1.5, lr=1.0), ValueError, r"layer_decay must be a factor in \(0, 1\]; got 1\.5"),
    (lambda: _bag(layer_decay=0.5), ValueError, "lr must be given with layer_decay"),
]
