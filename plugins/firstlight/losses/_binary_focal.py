"""Binary focal loss: cross-entropy that looks away from what is already right, each element a question of its own."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from firstlight._reduce import Reduction, check_reduction, reduce
from firstlight._require import require
from firstlight.losses._focal_term import focal_term
from firstlight.losses._tensors import require_probabilities, require_same_shape, widen

Normalizer: TypeAlias = Literal["elements", "positives"]


def binary_focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
    normalizer: Normalizer = "elements",
    reduction: Reduction = "mean",
) -> Tensor:
    """``-alpha_t (1 - p_t)^gamma log(p_t)``: binary cross-entropy, scaled down where the answer is already right.

    ``alpha`` in [0, 1] weighs positives, ``1 - alpha`` negatives; ``None`` weighs both by 1. The mean is over all
    elements, or, as in RetinaNet, the sum divided by the number of positives, ``max(1, target.sum())``.

    Shapes: ``logits [*]``, ``target [*]`` of the same shape; to ``[]``, or ``[*]`` unreduced.
    Unit: nats. Computed in float32 or better; in log space, so that loss and gradient are finite for finite logits.
    Law: ``gamma=0`` is the (alpha-weighted) binary cross-entropy. A soft target t weighs, as elsewhere, with
    ``p_t = p t + (1 - p) (1 - t)`` and ``alpha_t`` likewise.
    Source: Lin et al. 2017, arXiv:1708.02002.

    Raises:
        ValueError: shapes that differ, integer targets or targets outside [0, 1] (values are checked on the CPU only),
            ``gamma`` below zero, ``alpha`` outside [0, 1], an unknown normalizer or reduction.

    >>> binary_focal_loss(torch.tensor([0.0, 100.0]), torch.tensor([1.0, 0.0]), reduction="none")
    tensor([  0.1733, 100.0000])
    """
    _check(gamma, alpha, normalizer, reduction)
    require_same_shape(logits, target, ("logits", "target"))
    require_probabilities(target)
    logits, target = widen(logits), widen(target)
    dtype = torch.promote_types(logits.dtype, target.dtype)
    target = target.to(dtype)
    losses = focal_term(logits.to(dtype), target, gamma)
    if alpha is not None:
        losses = losses * torch.add(1 - alpha, target, alpha=2 * alpha - 1)
    return reduce(losses, reduction, target.sum() if normalizer == "positives" else None)


def _check(gamma: float, alpha: float | None, normalizer: str, reduction: str) -> None:
    check_reduction(reduction)
    require(0 <= gamma < float("inf"), "gamma", gamma, "zero or more, and finite")
    require(alpha is None or 0 <= alpha <= 1, "alpha", alpha, "between 0 and 1, or None for no weighting")
    require(normalizer in get_args(Normalizer), "normalizer", normalizer, "'elements' or 'positives'")


class BinaryFocalLoss(nn.Module):
    """Module form of :func:`binary_focal_loss`.

    Shapes: ``logits [*]``, ``target [*]`` of the same shape; to ``[]``, or ``[*]`` unreduced.
    Unit: nats. Computed in float32 or better; finite with finite gradients for finite logits.
    Law: ``gamma=0`` is the (alpha-weighted) binary cross-entropy.
    Source: Lin et al. 2017, arXiv:1708.02002.

    Raises:
        ValueError: as :func:`binary_focal_loss`.

    >>> BinaryFocalLoss(gamma=2.0, alpha=0.25)(torch.zeros(1), torch.ones(1))
    tensor(0.0433)
    """

    def __init__(
        self,
        *,
        gamma: float = 2.0,
        alpha: float | None = None,
        normalizer: Normalizer = "elements",
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        _check(gamma, alpha, normalizer, reduction)
        self.gamma = gamma
        self.alpha = alpha
        self.normalizer = normalizer
        self.reduction = reduction

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return binary_focal_loss(
            logits,
            target,
            gamma=self.gamma,
            alpha=self.alpha,
            normalizer=self.normalizer,
            reduction=self.reduction,
        )

    @torch.no_grad()
    def minimum(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the lowest value that any logits could reach on this target, as shaped by ``reduction``.

        0 for targets of 0 and 1; soft targets leave something over, found by a search for each of their values.
        """
        values, which = torch.unique(target, return_inverse=True)
        low, high = (
            torch.full_like(values, -60.0, dtype=torch.float64),
            torch.full_like(values, 60.0, dtype=torch.float64),
        )
        for _ in range(100):  # golden-section search, without the bookkeeping
            left, right = torch.lerp(low, high, 1 / 3), torch.lerp(low, high, 2 / 3)
            falls = focal_term(left, values.double(), self.gamma) > focal_term(right, values.double(), self.gamma)
            low, high = torch.where(falls, left, low), torch.where(falls, high, right)
        best = (0.5 * (low + high))[which].to(torch.promote_types(widen(logits).dtype, widen(target).dtype))
        return self.forward(best, target)

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}, alpha={self.alpha}, normalizer={self.normalizer!r}, reduction={self.reduction!r}"
