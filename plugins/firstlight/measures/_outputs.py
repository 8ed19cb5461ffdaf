"""Readings of outputs and activations."""

from __future__ import annotations

import torch
from torch import Tensor


def dead_units(slopes: Tensor, *, tolerance: float = 1e-6) -> Tensor:
    """Return the share of units whose activation has no slope for any sample at any position, on its device.

    Shapes: ``[N, C, *]``, the derivatives of an activation; of three dimensions either the second or the last may hold
    the units, and the larger share is returned; to ``[]``.

    >>> dead_units(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    tensor(0.5000)
    """
    awake = slopes.detach().abs().float() > tolerance
    if awake.ndim < 2:
        return (~awake.any()).float()
    dims = (1,) if awake.ndim != 3 else (1, 2)
    return torch.stack([(~awake.movedim(dim, 0).flatten(1).any(1)).float().mean() for dim in dims]).amax()


def saturated_share(before: Tensor, limit: float) -> Tensor:
    """Return the share of values that enter a squashing function beyond ``limit`` on either side, on their device.

    >>> saturated_share(torch.tensor([-9.0, 0.0, 9.0, 1.0]), 5.0)
    tensor(0.5000)
    """
    return (before.detach().abs() > limit).float().mean()


def is_simplex(outputs: Tensor, *, dim: int = 1, tolerance: float = 1e-4) -> bool:
    """Whether values along ``dim`` are shares: none negative, all sums one.

    >>> is_simplex(torch.tensor([[0.25, 0.75]])), is_simplex(torch.tensor([[1.25, -0.25]]))
    (True, False)
    """
    values = outputs.detach().float()
    return bool((values >= 0).all()) and bool(((values.sum(dim) - 1).abs() < tolerance).all())


def identical_rows(weight: Tensor, *, tolerance: float = 1e-7) -> bool:
    """Whether all units of a weight start the same: they get the same gradient and stay the same.

    Shapes: ``[units, *]``, at least two units.

    >>> identical_rows(torch.full((3, 2), 0.01)), identical_rows(torch.eye(2))
    (True, False)
    """
    rows = weight.detach().reshape(len(weight), -1)
    return len(rows) > 1 and bool(((rows - rows[:1]).abs() <= tolerance * rows[:1].abs()).all())
