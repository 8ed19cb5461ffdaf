"""Penalties on the weights of a module: L1, L2 and both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from firstlight._layers import NORM_LAYERS
from firstlight._require import require


def penalized_weights(module: nn.Module) -> Iterator[nn.Parameter]:
    """Yield each trainable weight once: no biases, no scalars per channel, nothing of a normalization layer.

    Biases and norm parameters set a level, not a slope: pulling them to zero limits what a network can represent
    without making it smoother. Tied parameters count once, since they are one tensor.
    """
    seen: set[int] = set()
    for layer in module.modules():
        if isinstance(layer, NORM_LAYERS):
            continue
        for name, parameter in layer.named_parameters(recurse=False):
            is_weight = parameter.ndim > 1 and not name.startswith("bias")  # attention's bias_k has three dimensions
            if is_weight and parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                yield parameter


class _WeightPenalty(nn.Module, ABC):
    def forward(self, module: nn.Module) -> Tensor:
        """Return the weighted penalty of ``module``, a float32 (or wider) scalar; 0 if it has no weights."""
        weights = list(penalized_weights(module))
        if not weights:
            return torch.zeros(())
        # A sum over millions of terms does not fit in 16 bits.
        with torch.autocast(weights[0].device.type, enabled=False):
            penalty: Tensor = _Penalty.apply(*self._factors(), *weights)  # type: ignore[no-untyped-call]
        return penalty

    @abstractmethod
    def _factors(self) -> tuple[float, float]:
        """Return the factors of ``sum |w|`` and of ``sum w**2``."""


class _Penalty(torch.autograd.Function):
    """``l1 * sum |w| + l2 * sum w**2``: two passes over memory where one node of autograd a tensor makes five."""

    @staticmethod
    def forward(l1: float, l2: float, *weights: Tensor) -> Tensor:
        parts = []
        if l1:
            parts.append(l1 * torch.stack(_absolute_sums(weights)).sum())
        if l2 or not l1:
            parts.append(l2 * torch.stack(_norms(weights)).square().sum())
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.l1, ctx.l2, *weights = inputs
        ctx.save_for_backward(*weights)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        l1, l2 = ctx.l1 * gradient, 2 * ctx.l2 * gradient
        weights = ctx.saved_tensors
        if not ctx.l1:
            return None, None, *(weight * l2 for weight in weights)
        if not ctx.l2:
            return None, None, *(weight.sign().mul_(l1) for weight in weights)
        return None, None, *((weight * l2).add_(weight.sign().mul_(l1)) for weight in weights)


def _absolute_sums(weights: tuple[Tensor, ...]) -> list[Tensor]:
    if weights[0].device.type != "cpu":
        return _foreach_norms(weights, 1)
    return [weight.abs().sum(dtype=_sum_dtype(weight)) for weight in weights]  # faster than torch's norm of order 1


def _norms(weights: tuple[Tensor, ...]) -> list[Tensor]:
    if weights[0].device.type != "cpu":
        return _foreach_norms(weights, 2)
    return [torch.linalg.vector_norm(weight, dtype=_sum_dtype(weight)) for weight in weights]


def _foreach_norms(weights: tuple[Tensor, ...], order: int) -> list[Tensor]:
    """One launch for all tensors, where each launch costs more than the sum itself."""
    dtype = torch.promote_types(max((w.dtype for w in weights), key=lambda dtype: dtype.itemsize), torch.float32)
    return list(torch._foreach_norm(weights, order, dtype=dtype))


def _sum_dtype(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)


class L1Penalty(_WeightPenalty):
    """``weight * sum |w|`` over the weights of a module: pulls towards sparse weights.

    Shapes: a module to ``[]``. Unit: that of the loss. Law: gradient ``weight * sign(w)``, 0 at 0.
    Source: Tibshirani 1996. A subgradient step never lands on exact zeros; :func:`soft_threshold_` does.

    Raises:
        ValueError: a weight below zero or not finite.

    >>> float(L1Penalty(0.1)(nn.Linear(2, 1).requires_grad_(False)))  # frozen weights are not penalized
    0.0
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        check_weight("weight", weight)
        self.weight = weight

    def _factors(self) -> tuple[float, float]:
        return self.weight, 0.0

    def extra_repr(self) -> str:
        return f"weight={self.weight}"


class L2Penalty(_WeightPenalty):
    """``weight * sum w**2`` over the weights of a module, without a factor 1/2 (as in Keras).

    Shapes: a module to ``[]``. Unit: that of the loss. Law: gradient ``2 * weight * w``; under plain SGD
    ``L2Penalty(d / 2)`` equals ``weight_decay=d``. Under adaptive optimizers it does not: the penalty's gradient is
    rescaled like any other, decoupled decay is not (Loshchilov and Hutter 2019, arXiv:1711.05101).
    Source: Hoerl and Kennard 1970.

    Raises:
        ValueError: a weight below zero or not finite.

    >>> layer = nn.Linear(2, 1)
    >>> _ = nn.init.constant_(layer.weight, 3.0)
    >>> round(L2Penalty(0.5)(layer).item(), 4)  # 0.5 * (9 + 9); the bias does not count
    9.0
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        check_weight("weight", weight)
        self.weight = weight

    def _factors(self) -> tuple[float, float]:
        return 0.0, self.weight

    def extra_repr(self) -> str:
        return f"weight={self.weight}"


class ElasticNetPenalty(_WeightPenalty):
    """``l1 * sum |w| + l2 * sum w**2`` over the weights of a module: sparse, but not one of a group of like weights.

    Shapes: a module to ``[]``. Unit: that of the loss. Law: ``L1Penalty(l1) + L2Penalty(l2)``, in one pass.
    Source: Zou and Hastie 2005.

    Raises:
        ValueError: a factor below zero or not finite.

    >>> layer = nn.Linear(2, 1)
    >>> _ = nn.init.constant_(layer.weight, -3.0)
    >>> round(ElasticNetPenalty(l1=0.1, l2=0.5)(layer).item(), 4)  # 0.1 * (3 + 3) + 0.5 * (9 + 9)
    9.6
    """

    def __init__(self, l1: float, l2: float) -> None:
        super().__init__()
        check_weight("l1", l1)
        check_weight("l2", l2)
        self.l1 = l1
        self.l2 = l2

    def _factors(self) -> tuple[float, float]:
        return self.l1, self.l2

    def extra_repr(self) -> str:
        return f"l1={self.l1}, l2={self.l2}"


def check_weight(name: str, value: float) -> None:
    """Raise ``ValueError`` unless ``value`` can be the factor of a penalty."""
    require(0 <= value < float("inf"), name, value, "zero or more, and finite")
