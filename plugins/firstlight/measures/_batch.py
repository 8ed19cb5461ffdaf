"""Readings of data: spreads, order, labels, what two splits share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Spread(NamedTuple):
    """Mean, standard deviation, extremes and the number of values that are not finite."""

    mean: float
    std: float
    low: float
    high: float
    nonfinite: int


def spread(values: Tensor) -> Spread:
    """Return mean, standard deviation, lowest and highest value over all finite elements, and how many are not finite.

    Shapes: any to five numbers. Unit: of the values.

    >>> spread(torch.tensor([1.0, 3.0, float("nan")]))
    Spread(mean=2.0, std=1.0, low=1.0, high=3.0, nonfinite=1)
    """
    flat = values.detach().flatten().double()
    finite = flat[torch.isfinite(flat)]
    if not finite.numel():
        return Spread(math.nan, math.nan, math.nan, math.nan, flat.numel())
    std = float(finite.std(correction=0))
    return Spread(float(finite.mean()), std, float(finite.min()), float(finite.max()), flat.numel() - finite.numel())


def column_spreads(rows: Tensor) -> Tensor:
    """Return the standard deviation of each column, over the finite values.

    Shapes: ``rows [N, *]`` to ``[D]``, ``D`` the number of elements of a row.
    """
    flat = rows.detach().reshape(len(rows), -1).double()
    finite = torch.isfinite(flat)
    count = finite.sum(0).clamp(min=1)
    mean = torch.where(finite, flat, 0.0).sum(0) / count
    return (torch.where(finite, flat - mean, 0.0).square().sum(0) / count).sqrt()


def _keys(rows: Tensor) -> list[bytes]:
    if not len(rows):
        return []
    flat = rows.detach().reshape(len(rows), -1).cpu().contiguous()
    if flat.is_floating_point():
        flat = flat.float()
    return [row.numpy().tobytes() for row in flat]


def duplicate_share(rows: Tensor) -> float:
    """Return the share of rows that repeat an earlier one exactly.

    >>> duplicate_share(torch.tensor([[1.0], [2.0], [1.0], [1.0]]))
    0.5
    """
    keys = _keys(rows)
    return 1.0 - len(set(keys)) / len(keys) if keys else 0.0


def shared_rows(rows: Tensor, others: Tensor) -> float:
    """Return the share of ``others`` that stands in ``rows`` too, exactly.

    >>> shared_rows(torch.tensor([[1.0], [2.0]]), torch.tensor([[2.0], [3.0]]))
    0.5
    """
    known = set(_keys(rows))
    keys = _keys(others)
    return sum(key in known for key in keys) / len(keys) if keys else 0.0


def batch_label_entropy(batches: Sequence[Tensor]) -> float:
    """Return the mean entropy of the labels of a batch, in nats.

    Shapes: class indices ``[N]``, a tensor a batch.

    >>> round(batch_label_entropy([torch.tensor([0, 1]), torch.tensor([1, 1])]), 4)
    0.3466
    """
    entropies = []
    for labels in batches:
        share = torch.unique(labels, return_counts=True)[1].double() / labels.numel()
        entropies.append(float(-(share * share.log()).sum()))
    return sum(entropies) / len(entropies)


class Signal(NamedTuple):
    """How much better than the prior neighbours predict a target, and how often chance does as well."""

    gain: float
    p_value: float


def label_signal(
    inputs: Tensor, target: Tensor, *, generator: torch.Generator, neighbors: int = 15, permutations: int = 100
) -> Signal:
    """Say whether ``target`` can be predicted at all from the nearest neighbours of each input, left out itself.

    The gain is, for classes, the reduction of the class-balanced log loss against the prior, as a fraction of it; for
    numbers the explained share of the variance. The p-value is the share of permuted targets that do as well.

    Shapes: ``inputs [N, *]``, ``target [N]`` class indices or ``[N]``, ``[N, D]`` numbers.
    Source: leave-one-out nearest neighbours (Cover and Hart 1967) with a permutation test.
    """
    flat = inputs.detach().reshape(len(inputs), -1).double()
    flat = (flat - flat.mean(0)) / flat.std(0, correction=0).clamp(min=1e-9)
    distance = torch.cdist(flat, flat)
    distance.fill_diagonal_(torch.inf)
    near = distance.topk(min(neighbors, len(flat) - 1), largest=False).indices
    if target.is_floating_point():
        numbers = target.detach().reshape(len(target), -1).double()
        numbers = (numbers - numbers.mean(0)) / numbers.std(0, correction=0).clamp(min=1e-12)

        def gain(order: Tensor) -> float:
            shuffled = numbers[order]
            return float(1.0 - (shuffled - shuffled[near].mean(1)).square().mean())
    else:
        classes = torch.unique(target, return_inverse=True)[1]
        count = int(classes.max()) + 1
        onehot = F.one_hot(classes, count).double()
        prior = onehot.mean(0)
        weight = 1.0 / (prior[classes] * count)  # each class counts the same

        def gain(order: Tensor) -> float:
            labels, hot = classes[order], onehot[order]
            share = (hot[near].sum(1) + prior) / (near.shape[1] + 1.0)
            # balanced: a class is predicted by how much more of it there is than usual
            odds = share / prior
            odds = odds / odds.sum(1, keepdim=True)
            loss = -(odds.gather(1, labels[:, None]).squeeze(1).log() * weight[order]).mean()
            return float(1.0 - loss / math.log(count)) if count > 1 else 0.0

    found = gain(torch.arange(len(flat)))
    chance = [gain(torch.randperm(len(flat), generator=generator)) for _ in range(permutations)]
    return Signal(found, (1 + sum(value >= found for value in chance)) / (1 + permutations))
