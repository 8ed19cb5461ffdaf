"""Readings of curves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence


def best_of_last(losses: Sequence[float], *, window: int = 5) -> float:
    """Return the lowest finite value among the last ``window``; NaN if there is none.

    >>> best_of_last([3.0, 1.0, 2.0, float("nan")], window=3)
    1.0
    """
    last = [loss for loss in losses[-window:] if math.isfinite(loss)]
    return min(last) if last else math.nan


def rising_share(losses: Sequence[float]) -> float:
    """Return the share of steps after which the loss is higher.

    >>> rising_share([1.0, 2.0, 1.5])
    0.5
    """
    pairs = list(itertools.pairwise(losses))
    return sum(after > before for before, after in pairs) / len(pairs) if pairs else 0.0
