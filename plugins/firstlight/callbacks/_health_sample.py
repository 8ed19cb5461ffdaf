"""Sample: the values of a run, for its quantiles, in bounded memory."""

from __future__ import annotations

import math


class Sample:
    """Keep every value, and from ``limit`` on every second, every fourth, ...: evenly spaced, without random numbers.

    >>> sample = Sample(limit=100)
    >>> for value in range(1001):
    ...     sample.add(float(value))
    >>> sample.count, len(sample.kept) <= 100, sample.max, sample.quantile(0.5)
    (1001, True, 1000.0, 496.0)
    """

    def __init__(self, limit: int = 100_000) -> None:
        self.kept: list[float] = []
        self.count = 0
        self.max = -math.inf
        self._limit = limit
        self._stride = 1

    def add(self, value: float) -> None:
        if self.count % self._stride == 0:
            self.kept.append(value)
            if len(self.kept) > self._limit:
                del self.kept[1::2]
                self._stride *= 2
        self.count += 1
        self.max = max(self.max, value)

    def quantile(self, q: float) -> float:
        """Return the quantile by linear interpolation, as numpy's default does."""
        ordered = sorted(self.kept)
        position = q * (len(ordered) - 1)
        below = math.floor(position)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (position - below) * (ordered[above] - ordered[below])
