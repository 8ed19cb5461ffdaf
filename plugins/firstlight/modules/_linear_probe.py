"""A linear probe: how well a linear classifier does on features that it cannot change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Subset

# Relative to the features' variance, which is set to 1: enough for features that depend on each other.
_RIDGE = 1e-3


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier of features, in closed form: ridge regression of one-hot targets, standardized features.

    Shapes: ``weight [D, C]``, ``bias [C]``.
    """

    weight: Tensor
    bias: Tensor

    @classmethod
    def fit(
        cls,
        features: Tensor,
        target: Tensor,
        *,
        sum_ranks: Callable[[Tensor], Tensor] = lambda x: x,
        max_ranks: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> LinearProbe:
        """Return the best probe of these features; over several ranks that of the features of all.

        Only sums over samples are exchanged, so each rank gets the same probe.

        Shapes: ``features [N, D]``, ``target [N]`` class indices.
        """
        classes = int(max_ranks(target.max())) + 1
        # Apple's devices have no float64, in which sums of squares may be subtracted.
        x = features.to(device="cpu" if features.device.type == "mps" else None).double()
        y = F.one_hot(target.to(x.device).long(), classes).double()
        left = torch.cat([x.new_ones(len(x), 1), x], 1)
        sums = sum_ranks(left.T @ torch.cat([left, y], 1))
        dim = x.shape[1]
        means = sums / sums[0, 0]
        mean, share = means[0, 1 : 1 + dim], means[0, 1 + dim :]
        covariance = means[1:, 1 : 1 + dim] - mean.outer(mean)
        cross = means[1:, 1 + dim :] - mean.outer(share)
        std = covariance.diagonal().clamp(min=0).sqrt()
        std = torch.where(std > 1e-9 * (mean.abs() + 1e-30), std, torch.inf)  # a constant feature says nothing
        correlation = covariance / std.outer(std) + _RIDGE * torch.eye(dim, dtype=x.dtype, device=x.device)
        weight = torch.linalg.solve(correlation, cross / std[:, None]) / std[:, None]
        bias = share - mean @ weight
        return cls(weight.to(features), bias.to(features))

    def __call__(self, features: Tensor) -> Tensor:
        """Return the most likely class of each row."""
        return (features @ self.weight + self.bias).argmax(1)


def spread_batches(loader: DataLoader[Any], num_samples: int, *, rank: int, ranks: int) -> Iterator[Any]:
    """Return batches of this rank's share of ``num_samples`` samples of the loader's data, spread evenly over it.

    The loader itself is not iterated: its order, its workers and its position stay as they are.
    """
    dataset: Any = loader.dataset
    num = min(num_samples, len(dataset))
    mine = [i * len(dataset) // num for i in range(num)][rank::ranks]
    return iter(
        DataLoader(
            Subset(dataset, mine),
            batch_size=loader.batch_size or 64,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
        )
    )
