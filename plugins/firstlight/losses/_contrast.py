"""What contrastive losses share: directions, and the cost of telling one candidate from all the others."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from firstlight._require import require

# Similarities held at a time. 512 views fit many times over; 8192 are done in 8 chunks of 32 MiB.
_BUFFER_BYTES = 2**25


def check_pair(name: str, first: Tensor, second_name: str, second: Tensor) -> None:
    """Raise ``ValueError`` unless both are matrices of one shape."""
    require(first.ndim == 2 and len(first) > 0, name, tuple(first.shape), "of shape [N, D] with at least one row")
    require(second.shape == first.shape, second_name, tuple(second.shape), f"of the shape of {name}, {first.shape}")


def directions(x: Tensor) -> Tensor:
    """Return rows of length 1, in float32 or better; a row of zeros has no direction and stays 0, with gradient 0."""
    # Below this a gradient, which is of the order of 1 / length, would leave the range of the dtype.
    tiny = max(4 / torch.finfo(x.dtype).max, 1e-12)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    # Divided by its largest element first: the squares of 1e30 overflow.
    largest = x.detach().abs().amax(-1, keepdim=True)
    has_direction = ~(largest <= tiny)  # NaN stays NaN: a diverged model must not look like a perfect one
    x = x / largest.where(has_direction, 1.0)
    x = x.where(has_direction, 0.0)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    unit: Tensor = x / length.where(has_direction, 1.0)
    return unit


def lowest_contrast(num: int, others: int, temperature: float, further: int = 0) -> float:
    """Return the least that ``num`` samples can cost, each compared with ``others`` views of the other samples.

    At best samples form a simplex: cosine 1 within a pair and ``-1 / (num - 1)`` between samples. No arrangement does
    better (by Jensen's inequality, as the squared length of the sum of all embeddings is not negative), and in fewer
    than ``num - 1`` dimensions none does as well. ``further`` candidates can at best be opposite, with cosine -1.
    """
    apart = 1 + 1 / (num - 1) if num > 1 else 0.0
    return math.log1p(others * math.exp(-apart / temperature) + further * math.exp(-2 / temperature))


def contrast(
    anchors: Tensor, candidates: Tensor, positive: Tensor, left_out: Tensor | None = None, chunk_size: int | None = None
) -> Tensor:
    """Return the mean over anchors of the cross-entropy of ``anchors @ candidates.T`` against column ``positive``.

    Column ``left_out`` of each row is no candidate (an anchor itself). Similarities are computed ``chunk_size`` anchors
    at a time, and the gradients with them, so memory is ``chunk_size * len(candidates)``.
    """
    training = torch.is_grad_enabled()
    loss: Tensor = _Contrast.apply(  # type: ignore[no-untyped-call]
        anchors, candidates, positive, left_out, chunk_size, training
    )
    return loss


class _Contrast(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        candidates: Tensor,
        positive: Tensor,
        left_out: Tensor | None,
        chunk_size: int | None,
        training: bool,
    ) -> Tensor:
        ctx.save_for_backward(anchors, candidates, positive, left_out)
        loss, by_anchors, by_candidates = _in_chunks(anchors, candidates, positive, left_out, chunk_size, training)
        ctx.gradients = by_anchors, by_candidates
        return loss

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (factor,) = upstream
        if torch.is_grad_enabled():  # create_graph=True: autograd must see every operation
            anchors, candidates, positive, left_out = ctx.saved_tensors
            loss = dense_contrast(anchors, candidates, positive, left_out)
            gradients = torch.autograd.grad(loss, (anchors, candidates), factor, create_graph=True, allow_unused=True)
        else:
            gradients = tuple(factor * gradient for gradient in ctx.gradients)
        return *gradients, None, None, None, None


def dense_contrast(anchors: Tensor, candidates: Tensor, positive: Tensor, left_out: Tensor | None) -> Tensor:
    similarity = anchors @ candidates.t()
    hit = similarity.gather(1, positive[:, None])
    hidden = torch.zeros_like(similarity, dtype=torch.bool).scatter_(1, positive[:, None], True)
    if left_out is not None:
        hidden.scatter_(1, left_out[:, None], True)
    others = torch.where(hidden, -torch.inf, similarity - hit)
    return torch.cat([others, torch.zeros_like(hit)], 1).logsumexp(1).mean()


def _in_chunks(
    anchors: Tensor,
    candidates: Tensor,
    positive: Tensor,
    left_out: Tensor | None,
    chunk_size: int | None,
    training: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the loss and its gradients.

    The loss of an anchor is softplus(x) with x = logsumexp(other similarities) - similarity to the positive: unlike
    the difference of two logarithms near each other it keeps all digits of a loss near 0.
    """
    num, width = len(anchors), len(candidates)
    size = chunk_size or max(1, _BUFFER_BYTES // (width * anchors.element_size()))
    size = min(size, num)
    buffer = anchors.new_empty(size, width)
    losses = anchors.new_empty(num)
    by_anchors = torch.empty_like(anchors) if training else None
    by_candidates = torch.zeros_like(candidates) if training else None
    tiny = torch.finfo(anchors.dtype).tiny
    for start in range(0, num, size):
        rows = slice(start, start + size)
        a, column = anchors[rows], positive[rows, None]
        z = torch.mm(a, candidates.t(), out=buffer[: len(a)])
        hit = z.gather(1, column).squeeze(1)
        z.scatter_(1, column, -torch.inf)
        if left_out is not None:
            z.scatter_(1, left_out[rows, None], -torch.inf)
        top = z.amax(1).clamp(min=torch.finfo(z.dtype).min)  # a pair with no other has no candidates left
        total = z.sub_(top[:, None]).exp_().sum(1)
        x = top + total.log() - hit
        losses[rows] = torch.logaddexp(x, torch.zeros_like(x))
        if by_anchors is None or by_candidates is None:
            continue
        wrong = torch.sigmoid(x) / num
        z.mul_((wrong / total.clamp(min=tiny))[:, None]).scatter_(1, column, -wrong[:, None])
        torch.mm(z, candidates, out=by_anchors[rows])
        by_candidates.addmm_(z.t(), a)
    return losses.mean(), by_anchors, by_candidates
