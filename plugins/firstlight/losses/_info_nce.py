"""InfoNCE: each query must find its key among all keys."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from firstlight._require import require
from firstlight.losses._contrast import check_pair, contrast, directions, lowest_contrast
from firstlight.losses._gather import gather_ranks, report_mean, world

_LARGEST_SCALE = 100.0  # CLIP's: above it training becomes unstable


def info_nce_loss(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.07,
    symmetric: bool = False,
    gather: bool = True,
) -> Tensor:
    """Cross-entropy of finding a query's key among all keys and ``negatives``, by cosine similarity.

    ``negatives`` (hard ones, or a queue of older keys) are further candidates of every query of this process.
    ``symmetric`` takes the mean with the loss of finding a key's query among the queries, as CLIP does. With
    ``gather``, under ``torch.distributed``, the keys (and queries) of all ranks are candidates; every rank must then
    bring the same number of rows, returns the loss of the whole batch, and has gradients whose average over ranks is
    the gradient of that loss.

    Shapes: ``query [N, D]``, ``key [N, D]`` with row i the key of query i, ``negatives [M, D]``; to ``[]``.
    Unit: nats a query. Computed in float32 or better.
    Law: ``ln(N + M)`` where all embeddings are equal; the length of an embedding is irrelevant.
    Source: van den Oord et al. 2018, arXiv:1807.03748; symmetric, Radford et al. 2021, arXiv:2103.00020.

    Raises:
        ValueError: shapes that do not fit, a temperature not above 0.

    >>> info_nce_loss(torch.ones(4, 2), torch.ones(4, 2), torch.ones(12, 2))  # ln 16
    tensor(2.7726)
    """
    if not isinstance(temperature, Tensor):
        _check_temperature(temperature)
    check_pair("query", query, "key", key)
    if negatives is not None:
        fits = negatives.ndim == 2 and negatives.shape[1] == query.shape[1]
        require(fits, "negatives", tuple(negatives.shape), f"of shape [M, {query.shape[1]}]")
    rank, ranks = world(gather)
    with torch.autocast(query.device.type, enabled=False):
        queries, keys = directions(query), directions(key)
        # One gather for both: gather_ranks is a point where all ranks wait for each other.
        everyone = gather_ranks(torch.stack([queries, keys]) if symmetric else keys[None], ranks)
        positive = rank * len(query) + torch.arange(len(query), device=query.device)
        candidates = everyone[:, -1].flatten(0, 1)
        if negatives is not None:
            candidates = torch.cat([candidates, directions(negatives).to(candidates.dtype)])
        loss = contrast(queries / temperature, candidates, positive)
        if symmetric:
            loss = (loss + contrast(keys / temperature, everyone[:, 0].flatten(0, 1), positive)) / 2
        return report_mean(loss, ranks)


def _check_temperature(temperature: float) -> None:
    require(temperature > 0, "temperature", temperature, "above zero (MoCo, CLIP: 0.07)")


class InfoNCELoss(nn.Module):
    """Module form of :func:`info_nce_loss`; ``learnable_temperature`` makes the temperature a parameter.

    The parameter is ``log_scale``, the logarithm of ``1 / temperature``, held at ``1 / temperature <= 100``. Give it to
    the optimizer with the model's parameters, and without weight decay.

    Shapes: ``query [N, D]``, ``key [N, D]``, ``negatives [M, D]`` or ``None``; to ``[]``.
    Unit: nats a query.
    Law: under DDP the loss, and after DDP's averaging the gradient, are those of one process with the whole batch.
    Source: van den Oord et al. 2018, arXiv:1807.03748; learned temperature, Radford et al. 2021, arXiv:2103.00020.

    Raises:
        ValueError: a temperature not above 0, or a learnable one below 0.01; when called, shapes that do not fit.

    >>> loss = InfoNCELoss(learnable_temperature=True)
    >>> loss(torch.eye(3), torch.eye(3)).backward()
    >>> [name for name, _ in loss.named_parameters()]
    ['log_scale']
    """

    def __init__(
        self,
        *,
        temperature: float = 0.07,
        learnable_temperature: bool = False,
        symmetric: bool = False,
        gather: bool = True,
    ) -> None:
        super().__init__()
        _check_temperature(temperature)
        self.temperature = temperature
        self.learnable_temperature = learnable_temperature
        self.symmetric = symmetric
        self.gather = gather
        if learnable_temperature:
            require(temperature >= 1 / _LARGEST_SCALE, "temperature", temperature, "at least 0.01 to be learnable")
            self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))

    def forward(self, query: Tensor, key: Tensor, negatives: Tensor | None = None) -> Tensor:
        temperature: float | Tensor = self.temperature
        if self.learnable_temperature:
            # The parameter itself is held, as in CLIP: clamping its value here would stop its gradient for good.
            with torch.no_grad():
                self.log_scale.clamp_(max=math.log(_LARGEST_SCALE))
            temperature = torch.exp(-self.log_scale)
        return info_nce_loss(
            query, key, negatives, temperature=temperature, symmetric=self.symmetric, gather=self.gather
        )

    @torch.no_grad()
    def minimum(self, query: Tensor, key: Tensor, negatives: Tensor | None = None) -> Tensor:
        """Return a bound that no embeddings get below; those of N - 1 dimensions or more can reach it.

        A learnable temperature counts as the lowest that it can get to, 0.01.

        >>> InfoNCELoss(temperature=0.5).minimum(torch.eye(8), torch.eye(8))
        tensor(0.5376)
        """
        check_pair("query", query, "key", key)
        num = world(self.gather)[1] * len(query)
        temperature = 1 / _LARGEST_SCALE if self.learnable_temperature else self.temperature
        # Seen from the keys, which a symmetric loss does too, there are no negatives.
        further = 0 if negatives is None or self.symmetric else len(negatives)
        value = lowest_contrast(num, num - 1, temperature, further)
        return query.new_tensor(value, dtype=torch.promote_types(query.dtype, torch.float32))
