"""NT-Xent, the loss of SimCLR: each view must find the other view of its sample among all views."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from firstlight._require import require
from firstlight.losses._contrast import check_pair, contrast, directions, lowest_contrast
from firstlight.losses._gather import gather_ranks, report_mean, world


def nt_xent_loss(
    z1: Tensor, z2: Tensor, *, temperature: float = 0.5, gather: bool = True, chunk_size: int | None = None
) -> Tensor:
    """Cross-entropy of finding the other view of a sample among all views but oneself, by cosine similarity.

    With ``gather``, under ``torch.distributed``, all ranks' views are candidates. Every rank must then bring the same
    number of rows, returns the loss of the whole batch, and has gradients whose average over ranks, which is what DDP
    takes, is the gradient of that loss. ``chunk_size`` is how many views are compared at a time (default: as many as
    fill 32 MiB): memory grows with views times ``chunk_size``.

    Shapes: ``z1 [N, D]``, ``z2 [N, D]``, row i of each a view of sample i; to ``[]``.
    Unit: nats a view. Computed in float32 or better.
    Law: ``ln(2N - 1)`` where all embeddings are equal, 0 for a single pair; the length of an embedding is irrelevant.
    Source: Chen et al. 2020, arXiv:2002.05709.

    Raises:
        ValueError: shapes that do not fit, a temperature not above 0, a chunk below 1.

    >>> nt_xent_loss(torch.ones(8, 4), torch.ones(8, 4))  # ln 15
    tensor(2.7081)
    """
    _check(temperature, chunk_size)
    check_pair("z1", z1, "z2", z2)
    rank, ranks = world(gather)
    num = len(z1)
    with torch.autocast(z1.device.type, enabled=False):
        local = directions(torch.stack([z1, z2]))
        views = gather_ranks(local, ranks).reshape(ranks * 2 * num, -1)  # in order of rank, view, sample
        own = torch.arange(2 * num, device=z1.device)
        first = rank * 2 * num
        anchors = local.reshape(2 * num, -1) / temperature
        loss = contrast(anchors, views, first + (own + num) % (2 * num), first + own, chunk_size)
        return report_mean(loss, ranks)


def _check(temperature: float, chunk_size: int | None) -> None:
    require(temperature > 0, "temperature", temperature, "above zero (SimCLR: 0.1 to 0.5)")
    require(chunk_size is None or chunk_size >= 1, "chunk_size", chunk_size, "at least 1, or None")


class NTXentLoss(nn.Module):
    """Module form of :func:`nt_xent_loss`.

    Shapes: ``z1 [N, D]``, ``z2 [N, D]``; to ``[]``.
    Unit: nats a view.
    Law: under DDP the loss, and after DDP's averaging the gradient, are those of one process with the whole batch.
    Source: Chen et al. 2020, arXiv:2002.05709.

    Raises:
        ValueError: a temperature not above 0, a chunk below 1; when called, shapes that do not fit.

    >>> NTXentLoss(temperature=0.1)(torch.eye(4), torch.eye(4)) < 1e-3
    tensor(True)
    """

    def __init__(self, *, temperature: float = 0.5, gather: bool = True, chunk_size: int | None = None) -> None:
        super().__init__()
        _check(temperature, chunk_size)
        self.temperature = temperature
        self.gather = gather
        self.chunk_size = chunk_size

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        return nt_xent_loss(z1, z2, temperature=self.temperature, gather=self.gather, chunk_size=self.chunk_size)

    @torch.no_grad()
    def minimum(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Return a bound that no embeddings get below; those of N - 1 dimensions or more can reach it.

        >>> NTXentLoss(temperature=0.5).minimum(torch.eye(8), torch.eye(8))
        tensor(0.8853)
        """
        check_pair("z1", z1, "z2", z2)
        num = world(self.gather)[1] * len(z1)
        value = lowest_contrast(num, 2 * num - 2, self.temperature)
        return z1.new_tensor(value, dtype=torch.promote_types(z1.dtype, torch.float32))
