"""Log-cosh: right from the smallest errors to the largest."""

from __future__ import annotations

from typing import Any

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
    losses: Tensor = _LogCosh.apply(widen(prediction) - widen(target))  # type: ignore[no-untyped-call]
    return reduce(losses, reduction)


class _LogCosh(torch.autograd.Function):
    """``log cosh e = log(1 + 2 sinh(e/2)^2)``, with ``2 sinh(e/2)^2 = u^2 / (2 (1 + u))`` and ``u = expm1(|e|)``.

    Small errors keep their digits. Beyond 80, where ``exp`` would soon overflow, the rest is added as it is: there the
    function is a line to the last digit.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(error: Tensor) -> Tensor:
        size = error.abs()
        near = size.clamp(max=80.0)
        rest = size.sub_(near)
        u = near.expm1_()
        # u (u / (1 + u)) / 2, in this order: u^2 overflows
        return (u / (u + 1)).mul_(u).mul_(0.5).log1p_().add_(rest)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (error,) = ctx.saved_tensors
        return grad * torch.tanh(error)


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
