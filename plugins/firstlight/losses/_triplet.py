"""Triplet loss: an anchor must be nearer to a positive than to a negative, by a margin."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from firstlight._reduce import Reduction, check_reduction, reduce
from firstlight._require import require

Mining: TypeAlias = Literal["batch_hard", "semi_hard"]


def triplet_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor | None = None,
    *,
    mining: Mining | None = None,
    margin: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """``max(0, d(anchor, positive) - d(anchor, negative) + margin)`` with Euclidean distances.

    Given ``(anchor, positive, negative)``, row i of each is a triplet. Given ``(embeddings, labels)`` and ``mining``,
    the triplets are found in the batch. ``"batch_hard"``: for each anchor the farthest of its label and the nearest of
    another. ``"semi_hard"``: for each pair of a label the nearest negative that is farther than the positive, or the
    farthest negative where none is.

    Shapes: ``anchor [N, D]``, ``positive [N, D]``, ``negative [N, D]``, or ``embeddings [N, D]``, ``labels [N]``; to
    ``[]``, unreduced ``[N]``, for semi-hard ``[N, N]`` (anchor, positive).
    Unit: the unit of the embeddings. Computed in float32 or better.
    Law: the mean is over triplets that exist (those that cost nothing included); 0 with zero gradients where none
    does. Mining takes memory and time of the order of ``N * N``, not of its cube.
    Source: Schroff et al. 2015 (FaceNet, semi-hard), arXiv:1503.03832; Hermans et al. 2017 (batch hard),
    arXiv:1703.07737.

    Raises:
        ValueError: shapes that do not fit the way it is called, an unknown mining, a margin below 0.

    >>> triplet_loss(torch.zeros(1, 2), torch.tensor([[0.1, 0.1]]), torch.tensor([[3.0, 4.0]]), margin=5.0)
    tensor(0.1414)
    """
    _check_options(mining, margin, reduction)
    work = torch.promote_types(anchor.dtype, torch.float32)
    with torch.autocast(anchor.device.type, enabled=False):
        if mining is None:
            if negative is None:
                raise TypeError("negative is missing: give (anchor, positive, negative), or set mining for labels")
            for name, other in (("positive", positive), ("negative", negative)):
                require(other.shape == anchor.shape, name, tuple(other.shape), f"shaped as anchor, {anchor.shape}")
            a = anchor.to(work)
            gap = _length(a - positive.to(work)) - _length(a - negative.to(work))
            return reduce((gap + margin).relu(), reduction)
        if negative is not None:
            raise TypeError(f"mining={mining!r} takes (embeddings, labels), not three tensors")
        _check_labels(anchor, positive)
        distance, same, different = _relations(anchor.to(work), positive)
        mine = _batch_hard if mining == "batch_hard" else _semi_hard
        gap, exists = mine(distance, same, different)
        return reduce((gap + margin).relu().where(exists, 0.0), reduction, exists.sum())


def _check_options(mining: str | None, margin: float, reduction: str) -> None:
    ok = mining is None or mining in get_args(Mining)
    require(ok, "mining", mining, "None, 'batch_hard' or 'semi_hard'")
    require(margin >= 0, "margin", margin, "zero or above")
    check_reduction(reduction)


def _check_labels(embeddings: Tensor, labels: Tensor) -> None:
    require(embeddings.ndim == 2, "embeddings", tuple(embeddings.shape), "of shape [N, D]")
    fits = labels.shape == embeddings.shape[:1] and not labels.is_floating_point()
    found = f"{labels.dtype} of shape {tuple(labels.shape)}"
    require(fits, "labels", found, f"one integer per embedding, of shape ({len(embeddings)},)")


def _length(x: Tensor) -> Tensor:
    # Without torch's eps inside, which makes d(a, b) differ from d(b, a); the gradient at 0 is 0.
    length: Tensor = torch.linalg.vector_norm(x, dim=-1)
    return length


def _relations(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return distances, who is a positive of whom, and who a negative; each [N, N]."""
    # Not by |x|^2 + |y|^2 - 2xy: near 0, where it matters, that is all rounding.
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    equal = labels[:, None] == labels
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return distance, equal & ~itself, ~equal


def _batch_hard(distance: Tensor, same: Tensor, different: Tensor) -> tuple[Tensor, Tensor]:
    farthest = distance.where(same, -torch.inf).argmax(1, keepdim=True)
    nearest = distance.where(different, torch.inf).argmin(1, keepdim=True)
    gap = (distance.gather(1, farthest) - distance.gather(1, nearest)).squeeze(1)
    return gap, same.any(1) & different.any(1)


def _semi_hard(distance: Tensor, same: Tensor, different: Tensor) -> tuple[Tensor, Tensor]:
    # Each row's negatives in order: the first beyond a positive is found by bisection, for all positives at once.
    ordered, order = distance.detach().where(different, torch.inf).sort(1)
    count = different.sum(1, keepdim=True)
    beyond = torch.searchsorted(ordered, distance.detach().contiguous(), right=True)
    index = torch.minimum(beyond, (count - 1).clamp(min=0))
    gap = distance - distance.gather(1, order.gather(1, index))
    return gap, same & (count > 0)


class TripletLoss(nn.Module):
    """Module form of :func:`triplet_loss`.

    Shapes: ``(anchor, positive, negative)``, each ``[N, D]``; with ``mining``, ``(embeddings [N, D], labels [N])``.
    Unit: the unit of the embeddings.
    Law: the mean is over triplets that exist; mining is of the order of ``N * N``.
    Source: Schroff et al. 2015, arXiv:1503.03832; Hermans et al. 2017, arXiv:1703.07737.

    Raises:
        ValueError: an unknown mining, a margin below 0; when called, shapes that do not fit.

    >>> TripletLoss(mining="batch_hard", margin=0.2)(torch.eye(4), torch.tensor([0, 0, 1, 1]))
    tensor(0.2000)
    """

    def __init__(self, *, margin: float = 1.0, mining: Mining | None = None, reduction: Reduction = "mean") -> None:
        super().__init__()
        _check_options(mining, margin, reduction)
        self.margin = margin
        self.mining = mining
        self.reduction = reduction

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor | None = None) -> Tensor:
        return triplet_loss(
            anchor, positive, negative, mining=self.mining, margin=self.margin, reduction=self.reduction
        )

    @torch.no_grad()
    def minimum(self, anchor: Tensor, positive: Tensor, negative: Tensor | None = None) -> Tensor:
        """Return 0, shaped as ``reduction`` says: what is farther off than the margin costs nothing."""
        return torch.zeros_like(self.forward(anchor, positive, negative))
