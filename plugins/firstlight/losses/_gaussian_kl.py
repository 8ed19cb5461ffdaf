"""The divergence of a diagonal Gaussian from the standard normal, as in a variational autoencoder."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from firstlight._reduce import Reduction, check_reduction, reduce
from firstlight._require import require
from firstlight.losses._tensors import require_floating, require_same_shape, rows_of, widen

FreeBitsPer: TypeAlias = Literal["dimension", "sample"]


def gaussian_kl_loss(
    mean: Tensor,
    log_variance: Tensor,
    *,
    free_bits: float = 0.0,
    free_bits_per: FreeBitsPer = "dimension",
    reduction: Reduction = "mean",
) -> Tensor:
    """``KL(N(mean, exp(log_variance)) || N(0, 1))``, summed over dimensions and averaged over the batch.

    ``free_bits`` nats per dimension cost the same whether they are used or not, against posterior collapse:
    ``max(free_bits, KL)`` of each dimension's mean over the batch (``"dimension"``, as in the paper), or of each
    dimension of each sample (``"sample"``).

    Shapes: ``mean [N, *]``, ``log_variance [N, *]``; to ``[]``, or ``[N]`` unreduced.
    Unit: nats per sample. Computed in float32 or better.
    Law: ``sum((mean^2 + exp(v) - 1 - v) / 2)`` with ``v = log_variance``, right for variances near 1 too. Beyond
    ``v = 60`` (10 for float16 inputs, 600 for float64) the exponential goes on as its tangent: finite, and still
    pulling back.
    Source: Kingma and Welling 2013, arXiv:1312.6114; free bits, Kingma et al. 2016, arXiv:1606.04934.

    Raises:
        ValueError: shapes that differ or have no batch dimension, ``free_bits`` below zero, an unknown choice, and
            ``reduction="none"`` with free bits per dimension, which belong to the batch and not to a sample.

    >>> gaussian_kl_loss(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2))
    tensor(0.5000)
    """
    _check(free_bits, free_bits_per, reduction)
    require_same_shape(mean, log_variance, ("mean", "log_variance"))
    require_floating(log_variance, "log_variance")
    require(mean.ndim > 0, "mean", tuple(mean.shape), "of shape [N, D], a batch of samples")
    bend = {torch.float16: 10.0, torch.float64: 600.0}.get(log_variance.dtype, 60.0)
    mean, log_variance = widen(mean), widen(log_variance)
    excess: Tensor = _ExpMinusTangent.apply(log_variance, bend)  # type: ignore[no-untyped-call]
    each = rows_of(0.5 * (mean.square() + excess))
    if free_bits and free_bits_per == "dimension":
        total = each.mean(0).clamp(min=free_bits).sum() if len(each) else each.sum()
        return total * len(each) if reduction == "sum" else total
    if free_bits:
        each = each.clamp(min=free_bits)
    return reduce(each.sum(1), reduction)


class _ExpMinusTangent(torch.autograd.Function):
    """``exp(v) - 1 - v``, by its series near 0, where the difference would cancel; beyond ``bend`` a straight line."""

    generate_vmap_rule = True

    @staticmethod
    def forward(v: Tensor, bend: float) -> Tensor:
        near = v.clamp(-0.5, 0.5)
        series = torch.zeros_like(near)
        for n in range(16 if v.dtype == torch.float64 else 10, 1, -1):  # v^2 (1/2! + v (1/3! + v (1/4! + ...)))
            series.mul_(near).add_(1 / math.factorial(n))
        below = v.clamp(max=bend)
        far = below.expm1().sub_(v).add_(v.sub(below).mul_(math.exp(bend)))
        return torch.where(v.abs() < 0.5, near.square_().mul_(series), far)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:  # noqa: ARG004
        v, ctx.bend = inputs
        ctx.save_for_backward(v)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (v,) = ctx.saved_tensors
        return grad * torch.expm1(v.clamp(max=ctx.bend)), None


def _check(free_bits: float, free_bits_per: str, reduction: str) -> None:
    check_reduction(reduction)
    require(0 <= free_bits < float("inf"), "free_bits", free_bits, "zero or more nats, and finite")
    require(free_bits_per in get_args(FreeBitsPer), "free_bits_per", free_bits_per, "'dimension' or 'sample'")
    require(
        not (reduction == "none" and free_bits and free_bits_per == "dimension"),
        "reduction",
        reduction,
        "'mean' or 'sum' with free bits per dimension (use free_bits_per='sample' for a value per sample)",
    )


class GaussianKLLoss(nn.Module):
    """Module form of :func:`gaussian_kl_loss`, called with the mean and the log-variance that an encoder gives.

    Shapes: ``mean [N, *]``, ``log_variance [N, *]``; to ``[]``, or ``[N]`` unreduced.
    Unit: nats per sample. Computed in float32 or better.
    Law: ``sum((mean^2 + exp(v) - 1 - v) / 2)`` with ``v = log_variance``; 0 at mean 0 and log-variance 0.
    Source: Kingma and Welling 2013, arXiv:1312.6114; free bits, Kingma et al. 2016, arXiv:1606.04934.

    Raises:
        ValueError: as :func:`gaussian_kl_loss`.

    >>> GaussianKLLoss(free_bits=0.5)(torch.zeros(4, 8), torch.zeros(4, 8))  # 8 dimensions, half a nat each
    tensor(4.)
    """

    def __init__(
        self, *, free_bits: float = 0.0, free_bits_per: FreeBitsPer = "dimension", reduction: Reduction = "mean"
    ) -> None:
        super().__init__()
        _check(free_bits, free_bits_per, reduction)
        self.free_bits = free_bits
        self.free_bits_per = free_bits_per
        self.reduction = reduction

    def forward(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        return gaussian_kl_loss(
            mean,
            log_variance,
            free_bits=self.free_bits,
            free_bits_per=self.free_bits_per,
            reduction=self.reduction,
        )

    @torch.no_grad()
    def minimum(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """Return the value at the standard normal itself: 0, or the free bits of all dimensions.

        >>> GaussianKLLoss().minimum(torch.ones(4, 8), torch.zeros(4, 8))
        tensor(0.)
        """
        return self.forward(torch.zeros_like(mean), torch.zeros_like(log_variance))

    def extra_repr(self) -> str:
        return f"free_bits={self.free_bits}, free_bits_per={self.free_bits_per!r}, reduction={self.reduction!r}"
