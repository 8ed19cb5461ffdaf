"""Log-cosh: right from the smallest errors to the largest."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from firstlight._reduce import Reduction, check_reduction, reduce
from firstlight.losses._tensors import require_floating, require_same_shape, widen


def log_cosh_loss(prediction: Tensor, target: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """``log(cosh(prediction - target))``: half the squared error when small, the absolute error minus ln 2 when large.

    Shapes: ``prediction [*]``, ``target [*]`` of the same shape; to ``[]``, or ``[*]`` unreduced.
    Unit: none (the error must be a pure number: scale targets first). Computed in float32 or better.
    Law: the gradient is ``tanh(prediction - target)``; the value is right to 1e-6 of itself at every magnitude.
    Source: Green 1990, IEEE Transactions on Medical Imaging 9(1).

    Raises:
        ValueError: shapes that differ, integer targets, an unknown reduction.

    >>> log_cosh_loss(torch.tensor([1e-3]), torch.zeros(1)), log_cosh_loss(torch.tensor([1e6]), torch.zeros(1))
    (tensor(5.0000e-07), tensor(999999.3125))
    """
    check_reduction(reduction)
    require_same_shape(prediction, target)
    require_floating(target)
    error = widen(prediction) - widen(target)
    # log cosh e = log(1 + 2 sinh^2(e/2)) keeps small errors; |e| - ln 2 + log(1 + exp(-2|e|)) cannot overflow.
    # Each branch sees only what is safe for it: the gradient of the branch not taken is multiplied by 0, not ignored.
    small = error.clamp(-1, 1)
    large = error.abs()
    near = torch.log1p(2 * torch.sinh(small / 2).square())
    far = large - math.log(2) + torch.log1p(torch.exp(-2 * large))
    return reduce(torch.where(large < 1, near, far), reduction)


class LogCoshLoss(nn.Module):
    """Module form of :func:`log_cosh_loss`: a smooth loss between squared and absolute error.

    Shapes: ``prediction [*]``, ``target [*]`` of the same shape; to ``[]``, or ``[*]`` unreduced.
    Unit: none (scale targets first). Computed in float32 or better.
    Law: the gradient is ``tanh(prediction - target)``.
    Source: Green 1990, IEEE Transactions on Medical Imaging 9(1).

    Raises:
        ValueError: shapes that differ, integer targets, an unknown reduction.

    >>> LogCoshLoss()(torch.tensor([1.0]), torch.tensor([0.0]))
    tensor(0.4338)
    """

    def __init__(self, *, reduction: Reduction = "mean") -> None:
        super().__init__()
        check_reduction(reduction)
        self.reduction = reduction

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return log_cosh_loss(prediction, target, reduction=self.reduction)

    @torch.no_grad()
    def minimum(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return 0, shaped as ``reduction`` says: a prediction equal to the target costs nothing."""
        return torch.zeros_like(self.forward(prediction, target))

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"
