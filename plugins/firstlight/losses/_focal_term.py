"""``bce(z, t) * (1 - p_t)^gamma``, the term that both focal losses are made of."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def focal_term(logits: Tensor, target: Tensor, gamma: float) -> Tensor:
    """Return the unweighted binary focal loss of each element.

    With ``p = sigmoid(z)``, everything is made of ``p`` and ``1 - p = sigmoid(-z)``, each right to the last digit, and
    never of ``1 - p`` subtracted, which is 0 from z = 17 on in float32.
    """
    if torch.is_grad_enabled() and logits.requires_grad and not target.requires_grad:
        losses: Tensor = _FocalTerm.apply(logits, target, gamma)[0]  # type: ignore[no-untyped-call]
        return losses
    p, rest = torch.sigmoid(logits), torch.sigmoid(-logits)
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none") * _power(_miss(p, rest, target), gamma)


def _miss(p: Tensor, rest: Tensor, target: Tensor) -> Tensor:
    """Return ``1 - p_t``, kept above 0: below one, powers of it have an infinite slope at 0."""
    return torch.lerp(p, rest, target).clamp_min(torch.finfo(p.dtype).tiny)


def _power(miss: Tensor, gamma: float) -> Tensor:
    if gamma == 0:
        return torch.ones_like(miss)
    if gamma == 1:
        return miss
    return miss.square() if gamma == 2 else miss.pow(gamma)


def _slope(logits: Tensor, target: Tensor, gamma: float) -> Tensor:
    """Return the derivative of the focal term, in operations that can be differentiated again."""
    p, rest = torch.sigmoid(logits), torch.sigmoid(-logits)
    power = _power(_miss(p, rest, target), gamma)
    slope = power * torch.lerp(p, -rest, target)
    if gamma == 0:
        return slope
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return slope + losses * power * (gamma * (1 - 2 * target) * p * rest / _miss(p, rest, target))


class _FocalTerm(torch.autograd.Function):
    """The term with its slope worked out in the same pass: one saved tensor instead of one for each operation."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, target: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
        p, rest = torch.sigmoid(logits), torch.sigmoid(-logits)
        losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        slope = torch.lerp(p, -rest, target)
        if gamma == 0:
            return losses, slope
        miss = _miss(p, rest, target)
        power = _power(miss, gamma)
        # slope = power * (slope + gamma * losses * (1 - 2t) * p * rest / miss)
        steep = p.mul_(rest).mul_(losses).div_(miss).mul_(torch.sub(1, target, alpha=2))
        slope = slope.add_(steep, alpha=gamma).mul_(power)
        return losses.mul_(power), slope

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        logits, target, ctx.gamma = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(logits, target, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        logits, target, slope = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody will differentiate this again
            slope = _slope(logits, target, ctx.gamma)
        return grad * slope, None, None
