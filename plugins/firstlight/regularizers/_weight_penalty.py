"""Penalties on the weights of a module: L1 and L2."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

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
        for parameter in layer.parameters(recurse=False):
            if parameter.requires_grad and parameter.ndim > 1 and id(parameter) not in seen:
                seen.add(id(parameter))
                yield parameter


class _WeightPenalty(nn.Module, ABC):
    def __init__(self, weight: float) -> None:
        super().__init__()
        require(0 <= weight < float("inf"), "weight", weight, "zero or more, and finite")
        self.weight = weight

    def forward(self, module: nn.Module) -> Tensor:
        """Return the weighted penalty of ``module``, a float32 (or wider) scalar; 0 if it has no weights."""
        weights = list(penalized_weights(module))
        if not weights:
            return torch.zeros(())
        device_type = weights[0].device.type
        with torch.autocast(device_type, enabled=False):  # a sum over millions of terms does not fit in 16 bits
            return self.weight * torch.stack([self._of(_wide(weight)) for weight in weights]).sum()

    @abstractmethod
    def _of(self, weight: Tensor) -> Tensor: ...

    def extra_repr(self) -> str:
        return f"weight={self.weight}"


def _wide(weight: Tensor) -> Tensor:
    return weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight


class L1Penalty(_WeightPenalty):
    """``weight * sum |w|`` over the weights of a module: pulls towards sparse weights.

    Shapes: a module to ``[]``. Unit: that of the loss. Law: gradient ``weight * sign(w)``, 0 at 0.
    Source: Tibshirani 1996. A subgradient step never lands on exact zeros.

    >>> float(L1Penalty(0.1)(nn.Linear(2, 1).requires_grad_(False)))  # frozen weights are not penalized
    0.0
    """

    def _of(self, weight: Tensor) -> Tensor:
        return weight.abs().sum()


class L2Penalty(_WeightPenalty):
    """``weight * sum w**2`` over the weights of a module, without a factor 1/2 (as in Keras).

    Shapes: a module to ``[]``. Unit: that of the loss. Law: gradient ``2 * weight * w``; under plain SGD
    ``L2Penalty(d / 2)`` equals ``weight_decay=d``. Under adaptive optimizers it does not: the penalty's gradient is
    rescaled like any other, decoupled decay is not (Loshchilov and Hutter 2019, arXiv:1711.05101).
    Source: Hoerl and Kennard 1970.

    >>> layer = nn.Linear(2, 1)
    >>> _ = nn.init.constant_(layer.weight, 3.0)
    >>> L2Penalty(0.5)(layer)  # 0.5 * (9 + 9); the bias does not count
    tensor(9., grad_fn=<MulBackward0>)
    """

    def _of(self, weight: Tensor) -> Tensor:
        return weight.square().sum()
