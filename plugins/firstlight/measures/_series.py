"""Readings of a series of losses while it grows."""

from __future__ import annotations

import math
from collections.abc import Sequence


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else math.nan


def fall(losses: Sequence[float], *, first: int = 20, window: int = 50) -> float:
    """Return the lowest median of ``window`` losses in a row as a share of the median of the ``first`` ones.

    >>> fall([2.0] * 20 + [1.0] * 50)
    0.5
    """
    start = _median(losses[:first])
    medians = [_median(losses[i : i + window]) for i in range(first, len(losses) - window + 1, max(1, window // 2))]
    if not medians or not start > 0:
        return math.nan
    return min(medians) / start


def spikes(losses: Sequence[float], *, window: int = 100, factor: float = 2.0, deviations: float = 8.0) -> list[int]:
    """Return the positions of losses far above those before them.

    Above ``factor`` times what 95 % of the ``window`` before came to, so that losses of two kinds (mixed and plain
    batches, say) are no spikes; and above their median by ``deviations`` robust standard deviations (1.48 of the median
    absolute deviation) of the logarithm, so that noisy small batches are none.

    >>> series = [1.0 + 0.01 * (i % 7) for i in range(150)]
    >>> series[120] = 9.0
    >>> spikes(series)
    [120]
    """
    found = []
    logs = [math.log(loss) if loss > 0 and math.isfinite(loss) else math.nan for loss in losses]
    for index in range(window, len(losses)):
        if math.isnan(logs[index]):
            continue
        before = [value for value in logs[index - window : index] if not math.isnan(value)]
        if len(before) < window // 2:
            continue
        before.sort()
        middle, usual = before[len(before) // 2], before[math.ceil(0.95 * len(before)) - 1]
        spread = 1.48 * _median([abs(value - middle) for value in before])
        if logs[index] > max(usual + math.log(factor), middle + deviations * spread):
            found.append(index)
    return found
