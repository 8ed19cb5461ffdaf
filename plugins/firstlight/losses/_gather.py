"""Embeddings of all ranks, with gradients that arrive where they belong."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world(gather: bool) -> tuple[int, int]:
    """Return this process's rank and the number of processes to gather from; ``(0, 1)`` without a process group."""
    if gather and dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


class _Gather(torch.autograd.Function):
    """Stack the tensors of all ranks; a tensor's gradient is the sum of what all ranks ask of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:  # noqa: ARG004
        # Embeddings are small: one all_reduce, which every backend has, in place of a reduce_scatter.
        return _Sum.apply(upstream[0])[dist.get_rank()]  # type: ignore[no-untyped-call, no-any-return]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:  # noqa: ARG004
        return _Sum.apply(upstream[0])  # type: ignore[no-untyped-call, no-any-return]


def gather_ranks(x: Tensor, ranks: int) -> Tensor:
    """Return ``[ranks, *x.shape]``; every rank must bring a tensor of the same shape."""
    if ranks == 1:
        return x[None]
    stacked: Tensor = _Gather.apply(x.contiguous())  # type: ignore[no-untyped-call]
    return stacked


def report_mean(loss: Tensor, ranks: int) -> Tensor:
    """Return the mean of the ranks' losses, with the gradient of this rank's.

    DDP averages gradients. Here each rank's gradient already holds what the others' losses ask of its embeddings
    (:func:`gather_ranks`), so the average is the gradient of the mean; the value is the mean itself.
    """
    if ranks == 1:
        return loss
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    return loss + (mean / ranks - loss.detach())
