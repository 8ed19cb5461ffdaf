"""The reductions of a loss."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from torch import Tensor

from firstlight._require import require

Reduction: TypeAlias = Literal["mean", "sum", "none"]


def check_reduction(reduction: str) -> None:
    """Raise ``ValueError`` unless ``reduction`` is one of torch's three."""
    require(reduction in get_args(Reduction), "reduction", reduction, "'mean', 'sum' or 'none'")


def reduce(losses: Tensor, reduction: Reduction, count: Tensor | None = None) -> Tensor:
    """Reduce the losses; the mean is over all of them, or ``sum / count`` where only some of them count.

    The mean of nothing is 0, with zero gradients: a batch in which no target counts must not stop a run.
    """
    check_reduction(reduction)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if count is not None:
        return losses.sum() / count.clamp(min=1)
    return losses.mean() if losses.numel() else losses.sum()


def torch_reduction(reduction: Reduction, losses: Tensor) -> Reduction:
    """Return the reduction to ask of a loss of torch: its mean of nothing is NaN, its sum of nothing 0."""
    return reduction if losses.numel() or reduction == "none" else "sum"
