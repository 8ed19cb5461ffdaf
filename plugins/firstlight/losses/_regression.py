"""Regression losses: torch's, with a mask, and without its silent broadcasts."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firstlight._reduce import Reduction, check_reduction, reduce, torch_reduction
from firstlight._require import require
from firstlight.losses._tensors import require_floating, require_same_shape, widen


class _RegressionLoss(nn.Module, ABC):
    def __init__(self, *, reduction: Reduction = "mean") -> None:
        super().__init__()
        check_reduction(reduction)
        self.reduction = reduction

    def forward(self, prediction: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
        require_same_shape(prediction, target)
        require_floating(target)
        prediction, target = widen(prediction), widen(target)
        if mask is None:
            return self._of(prediction, target, torch_reduction(self.reduction, prediction))
        mask = _fit(mask, prediction)
        # What does not count may be anything, NaN included: it must leave before it meets arithmetic.
        losses = self._of(torch.where(mask, prediction, 0.0), torch.where(mask, target, 0.0), "none")
        return reduce(losses, self.reduction, mask.sum())

    @abstractmethod
    def _of(self, prediction: Tensor, target: Tensor, reduction: Reduction) -> Tensor: ...

    @torch.no_grad()
    def minimum(self, prediction: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Return 0, shaped as ``reduction`` says: a prediction equal to the target costs nothing."""
        return torch.zeros_like(self.forward(prediction, target, mask=mask))

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"


def _fit(mask: Tensor, prediction: Tensor) -> Tensor:
    """Return ``mask`` in the shape of the prediction; it may lack trailing dimensions, which it then decides whole."""
    require(mask.dtype is torch.bool, "mask", mask.dtype, "of dtype torch.bool, True where a value counts")
    require(
        mask.shape == prediction.shape[: mask.ndim],
        "mask",
        tuple(mask.shape),
        f"of shape {tuple(prediction.shape)}, or of its leading dimensions",
    )
    return mask.reshape(mask.shape + (1,) * (prediction.ndim - mask.ndim)).expand_as(prediction)


class MSELoss(_RegressionLoss):
    """Squared error, ``(prediction - target)^2``.

    Shapes: ``prediction [*]``, ``target [*]``, optionally ``mask [*]`` (bool, True where a value counts; it may lack
    trailing dimensions); to ``[]``, or ``[*]`` unreduced, with 0 where the mask says no.
    Unit: that of the target, squared. Computed in float32 or better.
    Law: equals :class:`torch.nn.MSELoss` on what the mask keeps; nothing kept gives 0 with zero gradients.
    Source: Legendre 1805.

    Raises:
        ValueError: shapes that differ, integer targets, a mask that is not boolean or does not fit.

    >>> MSELoss()(torch.tensor([1.0, 5.0]), torch.tensor([3.0, float("nan")]), mask=torch.tensor([True, False]))
    tensor(4.)
    """

    def _of(self, prediction: Tensor, target: Tensor, reduction: Reduction) -> Tensor:
        return F.mse_loss(prediction, target, reduction=reduction)


class L1Loss(_RegressionLoss):
    """Absolute error, ``|prediction - target|``.

    Shapes: ``prediction [*]``, ``target [*]``, optionally ``mask [*]`` (bool, True where a value counts; it may lack
    trailing dimensions); to ``[]``, or ``[*]`` unreduced, with 0 where the mask says no.
    Unit: that of the target. Computed in float32 or better.
    Law: equals :class:`torch.nn.L1Loss` on what the mask keeps; nothing kept gives 0 with zero gradients.
    Source: Boscovich 1757.

    Raises:
        ValueError: shapes that differ, integer targets, a mask that is not boolean or does not fit.

    >>> L1Loss()(torch.tensor([1.0, 5.0]), torch.tensor([3.0, 4.0]))
    tensor(1.5000)
    """

    def _of(self, prediction: Tensor, target: Tensor, reduction: Reduction) -> Tensor:
        return F.l1_loss(prediction, target, reduction=reduction)


class HuberLoss(_RegressionLoss):
    """Squared error near the target and absolute error beyond ``delta``: outliers pull with a bounded force.

    Shapes: ``prediction [*]``, ``target [*]``, optionally ``mask [*]`` (bool, True where a value counts; it may lack
    trailing dimensions); to ``[]``, or ``[*]`` unreduced, with 0 where the mask says no.
    Unit: that of the target, squared. Computed in float32 or better.
    Law: with ``e = prediction - target``, ``e^2 / 2`` where ``|e| <= delta``, else ``delta * (|e| - delta / 2)``; it
    is ``delta`` times :class:`torch.nn.SmoothL1Loss` with ``beta=delta``.
    Source: Huber 1964.

    Raises:
        ValueError: ``delta`` not above zero, shapes that differ, integer targets, a mask that does not fit.

    >>> HuberLoss(delta=1.0)(torch.tensor([0.5, 3.0]), torch.zeros(2))  # (0.125 + 2.5) / 2
    tensor(1.3125)
    """

    def __init__(self, *, delta: float = 1.0, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        require(0 < delta < float("inf"), "delta", delta, "above zero, and finite")
        self.delta = delta

    def _of(self, prediction: Tensor, target: Tensor, reduction: Reduction) -> Tensor:
        return F.huber_loss(prediction, target, reduction=reduction, delta=self.delta)

    def extra_repr(self) -> str:
        return f"delta={self.delta}, {super().extra_repr()}"
