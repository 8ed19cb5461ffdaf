"""soft_threshold_: the proximal step of the L1 penalty."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from firstlight._require import require
from firstlight.regularizers._units import check_settable
from firstlight.regularizers._weight_penalty import penalized_weights


@torch.no_grad()
def soft_threshold_(module: nn.Module, amount: float) -> nn.Module:
    """Move, in place, every weight towards zero by ``amount``, and to exactly zero if it is nearer than that.

    For use after each optimizer step, with ``amount = lr * l1``, in place of ``L1Penalty(l1)``: the gradient of the
    penalty jumps over zero for ever, this step lands on it. The weights are those that the penalties count.

    Shapes: a module to itself. Unit: that of the weights.
    Law: ``sign(w) max(|w| - amount, 0)``, the minimum over v of ``(v - w)**2 / 2 + amount |v|``.
    Source: Daubechies et al. 2004; Beck and Teboulle 2009 (ISTA).

    Raises:
        ValueError: an amount below zero or not finite; parametrized or lazy layers.

    >>> layer = nn.Linear(3, 1)
    >>> _ = layer.weight.data.copy_(torch.tensor([[0.5, -0.25, 0.1]]))
    >>> soft_threshold_(layer, 0.2).weight.data
    tensor([[ 0.3000, -0.0500,  0.0000]])
    """
    require(0 <= amount < float("inf"), "amount", amount, "zero or more, and finite")
    for path, layer in module.named_modules():
        check_settable(layer, path, "soft_threshold_")
    for weight in penalized_weights(module):
        weight.copy_(F.softshrink(weight, amount))
    return module
