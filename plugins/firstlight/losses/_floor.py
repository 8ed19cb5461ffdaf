"""The floor of a loss: the lowest value that any prediction could reach on a given target."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from firstlight.losses._cross_entropy import best_logits
from firstlight.losses._ctc import best_path
from firstlight.losses._gather import world
from firstlight.losses._info_nce import InfoNCELoss
from firstlight.losses._nt_xent import NTXentLoss

Arguments = dict[str, Any]
_SURE = 50.0  # a logit as sure as need be: exp(-50) is 2e-22


def _cross_entropy(a: Arguments) -> Arguments:
    return {"input": best_logits(a["input"], a["target"], a["weight"], a["ignore_index"], a["label_smoothing"])}


def _nll(a: Arguments) -> Arguments:
    return {"input": best_logits(a["input"], a["target"], None, a["ignore_index"], 0.0)}


def _binary(a: Arguments) -> Arguments:
    return {"input": a["target"]}


def _binary_with_logits(a: Arguments) -> Arguments:
    target = a["target"]
    positive = target if a["pos_weight"] is None else target * a["pos_weight"]
    return {"input": torch.log(positive / (1 - target)).clamp(-_SURE, _SURE)}


def _regression(a: Arguments) -> Arguments:
    # A target of another shape is broadcast, to many values for one prediction; the mean is not reached then.
    return {"input": a["target"].expand_as(a["input"])}


def _kl_div(a: Arguments) -> Arguments | None:
    target = a["target"].exp() if a["log_target"] else a["target"]
    sums = [target.sum(dim) for dim in {1, target.ndim - 1} if dim < target.ndim]
    if not any(bool(((total - 1).abs() < 1e-3).all()) for total in sums):
        return None  # of targets that are no probabilities the lowest value is another
    return {"input": target.clamp(min=torch.finfo(target.dtype).tiny).log()}


def _poisson_nll(a: Arguments) -> Arguments | None:
    target = a["target"]
    if bool((target < 0).any()):
        return None  # no counts: it falls without end
    return {"input": torch.log(target).clamp(min=-_SURE) if a["log_input"] else (target - a["eps"]).clamp(min=0)}


def _gaussian_nll(a: Arguments) -> Arguments | None:
    learned = isinstance(a["var"], Tensor) and a["var"].requires_grad
    return None if learned else _regression(a)  # it falls with a learned variance down to the logarithm of eps


def _soft_margin(a: Arguments) -> Arguments:
    target = a["target"]
    return {"input": torch.where(target == 0, 0.0, _SURE / target)}


def _multilabel_soft_margin(a: Arguments) -> Arguments:
    return {"input": torch.logit(a["target"]).clamp(-_SURE, _SURE)}


def _multi_margin(a: Arguments) -> Arguments:
    right = F.one_hot(a["target"], a["input"].shape[-1])
    return {"input": right * max(float(a["margin"]), 0.0)}


def _multilabel_margin(a: Arguments) -> Arguments:
    given = (a["target"] >= 0).long().cumprod(-1)  # a row's classes end at its first -1
    classes = a["target"].clamp(min=0)
    return {"input": torch.zeros_like(a["input"]).scatter_reduce(-1, classes, given.to(a["input"].dtype), "amax")}


def _hinge_embedding(a: Arguments) -> Arguments | None:
    if bool((a["input"] < 0).any()):
        return None  # no distance: it falls without end
    return {"input": torch.where(a["target"] == 1, 0.0, max(float(a["margin"]), 0.0)).expand_as(a["input"])}


def _cosine_embedding(a: Arguments) -> Arguments:
    sign = a["target"].unsqueeze(-1) if a["target"].ndim else a["target"]
    return {"input1": torch.ones_like(a["input1"]) * sign, "input2": torch.ones_like(a["input2"])}


def _margin_ranking(a: Arguments) -> Arguments:
    gap = torch.where(a["target"] == 0, 0.0, a["margin"] / a["target"])
    return {"input1": torch.zeros_like(a["input1"]) + gap, "input2": torch.zeros_like(a["input2"])}


def _triplet_margin(a: Arguments) -> Arguments:
    far = torch.full_like(a["negative"], 1e3 + abs(float(a["margin"])))
    return {"anchor": torch.zeros_like(a["anchor"]), "positive": torch.zeros_like(a["positive"]), "negative": far}


def _ctc(a: Arguments) -> Arguments:
    best = best_path(a["log_probs"], a["targets"], a["input_lengths"], a["target_lengths"], a["blank"])
    return {"log_probs": best}


# Each function of torch with the arguments at which it is lowest; None where that is not known.
_BEST: dict[Callable[..., Any], Callable[[Arguments], Arguments | None]] = {
    F.cross_entropy: _cross_entropy,
    F.nll_loss: _nll,
    F.binary_cross_entropy: _binary,
    F.binary_cross_entropy_with_logits: _binary_with_logits,
    F.mse_loss: _regression,
    F.l1_loss: _regression,
    F.smooth_l1_loss: _regression,
    F.huber_loss: _regression,
    F.kl_div: _kl_div,
    F.poisson_nll_loss: _poisson_nll,
    F.gaussian_nll_loss: _gaussian_nll,
    F.soft_margin_loss: _soft_margin,
    F.multilabel_soft_margin_loss: _multilabel_soft_margin,
    F.multi_margin_loss: _multi_margin,
    F.multilabel_margin_loss: _multilabel_margin,
    F.hinge_embedding_loss: _hinge_embedding,
    F.cosine_embedding_loss: _cosine_embedding,
    F.margin_ranking_loss: _margin_ranking,
    F.triplet_margin_loss: _triplet_margin,
    F.ctc_loss: _ctc,
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
        best = _BEST[function](bound.arguments)
        if best is None:
            return None
        for name, value in best.items():
            bound.arguments[name] = value.to(bound.arguments[name].dtype)
    except (RuntimeError, ValueError):  # shapes that the loss itself does not fit either
        return None
    floor: Tensor = function(*bound.args, **bound.kwargs)
    return floor


@torch.no_grad()
def module_floor(loss: Any, *args: Any, **kwargs: Any) -> Tensor | None:
    """Return ``loss.minimum(...)``; ``None`` for embeddings of too few dimensions to get there."""
    floor: Tensor = loss.minimum(*args, **kwargs)
    if isinstance(loss, (InfoNCELoss, NTXentLoss)):
        first = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        points = len(first) * world(loss.gather)[1]
        return floor if first.shape[1] >= points - 1 else None  # a simplex of so many corners
    return floor
