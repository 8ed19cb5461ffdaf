"""The floor of a loss: the lowest value that any prediction could reach on a given target."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from firstlight.losses._cross_entropy import best_logits

Arguments = dict[str, Any]


def _cross_entropy(a: Arguments) -> Tensor:
    return best_logits(a["input"], a["target"], a["weight"], a["ignore_index"], a["label_smoothing"])


def _nll(a: Arguments) -> Tensor:
    return best_logits(a["input"], a["target"], None, a["ignore_index"], 0.0)


def _binary(a: Arguments) -> Tensor:
    target: Tensor = a["target"]
    return target


def _binary_with_logits(a: Arguments) -> Tensor:
    target = a["target"]
    positive = target if a["pos_weight"] is None else target * a["pos_weight"]
    return torch.log(positive / (1 - target)).clamp(-50, 50)  # log 0 and log inf: as sure as floats can be


def _regression(a: Arguments) -> Tensor:
    # A target of another shape is broadcast, to many values for one prediction; the mean is not reached then.
    target: Tensor = a["target"].expand_as(a["input"])
    return target


# Each function of torch with the prediction at which it is lowest.
_BEST: dict[Callable[..., Any], Callable[[Arguments], Tensor]] = {
    F.cross_entropy: _cross_entropy,
    F.nll_loss: _nll,
    F.binary_cross_entropy: _binary,
    F.binary_cross_entropy_with_logits: _binary_with_logits,
    F.mse_loss: _regression,
    F.l1_loss: _regression,
    F.smooth_l1_loss: _regression,
    F.huber_loss: _regression,
}


def has_floor(function: Callable[..., Any]) -> bool:
    """Whether :func:`loss_floor` knows ``function``."""
    return function in _BEST


@torch.no_grad()
def loss_floor(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor | None:
    """Return the lowest value of a loss function of :mod:`torch.nn.functional` on this target; ``None`` if unknown.

    The call is repeated with the best prediction in place of the given one, so reductions, class weights, ignored
    targets and label smoothing count as they do in the call itself.

    >>> loss_floor(F.cross_entropy, torch.zeros(1, 10), torch.tensor([3]), label_smoothing=0.1)
    tensor(0.5003)
    """
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    try:
        bound.arguments["input"] = _BEST[function](bound.arguments).to(bound.arguments["input"].dtype)
    except (RuntimeError, ValueError):  # shapes that the loss itself does not fit either
        return None
    floor: Tensor = function(*bound.args, **bound.kwargs)
    return floor
