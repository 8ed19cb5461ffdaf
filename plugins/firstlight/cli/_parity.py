"""How far the outputs of an exported model are from those of the model itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Parity:
    """The largest absolute difference, and whether it is small beside the outputs."""

    max_abs_difference: float
    passed: bool


def parity(expected: Sequence[Tensor], found: Sequence[Tensor], *, tolerance: float) -> Parity:
    """Compare outputs: at most ``tolerance * max(1, largest value)`` apart, NaN and infinity in the same places.

    >>> parity([torch.tensor([1.0, 200.0])], [torch.tensor([1.0, 200.01])], tolerance=1e-4).passed
    True
    """
    alike = len(expected) == len(found) and all(a.shape == b.shape for a, b in zip(expected, found, strict=True))
    if not alike:
        return Parity(math.inf, passed=False)
    worst, passed = 0.0, True
    for a, b in zip(expected, found, strict=True):
        wide, other = a.double(), b.double()
        same = (wide == other) | (wide.isnan() & other.isnan())
        # What is not a number on one side only is as far off as can be.
        apart = torch.where(same, 0.0, (wide - other).abs()).nan_to_num(nan=math.inf, posinf=math.inf)
        difference = float(apart.max()) if apart.numel() else 0.0
        sizes = wide[wide.isfinite()].abs()
        largest = max(1.0, float(sizes.max()) if sizes.numel() else 0.0)
        worst = max(worst, difference)
        passed = passed and difference <= (tolerance * largest if a.is_floating_point() else 0.0)
    return Parity(worst, passed)
