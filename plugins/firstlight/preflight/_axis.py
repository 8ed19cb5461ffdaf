"""One axis of a chart: from values to places, and the ticks between."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """Maps ``low`` to ``start`` and ``high`` to ``end``, linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def over(cls, values: Iterable[float], start: float, end: float, *, log: bool = False, zero: bool = False) -> Axis:
        """Return an axis that holds all finite values, from zero on if asked, and never an empty one."""
        finite = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
        low, high = min(finite, default=1.0 if log else 0.0), max(finite, default=1.0)
        if log:
            low, high = 10 ** math.floor(math.log10(low) + 1e-9), 10 ** math.ceil(math.log10(high) - 1e-9)
            return cls(low, high if high > low else 10 * low, start, end, log=True)
        low = min(low, 0.0) if zero else low
        step = _step(high - low or abs(high) or 1.0)
        low, high = step * math.floor(low / step + 1e-9), step * math.ceil(high / step - 1e-9)
        return cls(low, high if high > low else low + step, start, end)

    def at(self, value: float) -> float:
        """Return the place of a value; what lies outside goes to the nearer end."""
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(max(value, low)), math.log10(low), math.log10(high)
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return round values; decades, at most about six of them, on a logarithmic axis.

        >>> Axis(0.0, 1.0, 0, 100).ticks()
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
        >>> Axis(0.001, 10.0, 0, 100, log=True).ticks()
        [0.001, 0.01, 0.1, 1.0, 10.0]
        """
        if self.log:
            first, last = round(math.log10(self.low)), round(math.log10(self.high))
            return [10.0**power for power in range(first, last + 1, max(1, math.ceil((last - first) / 6)))]
        step = _step(self.high - self.low)
        count = round((self.high - self.low) / step)
        return [float(f"{self.low + index * step:.10g}") for index in range(count + 1)]


def _step(width: float) -> float:
    """Return 1, 2 or 5 times a power of ten, four to ten of which make the width."""
    power = 10.0 ** math.floor(math.log10(width / 4))
    return next(power * factor for factor in (5, 2, 1) if power * factor <= width / 4)
