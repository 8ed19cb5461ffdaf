"""Images as a module receives them, made visible: from any numbers to 0 to 255."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

Pixels = list[list[list[int]]]


def visible(images: Sequence[Any]) -> tuple[list[Pixels], float, float]:
    """Return pixels of images of shape (n, h, w) or (n, h, w, 3), with the values that are black and white.

    All images share one scale; what is not finite is black.

    >>> visible([[[0.0, 0.5], [1.0, 0.0]]])
    ([[[[0], [128]], [[255], [0]]]], 0.0, 1.0)
    """
    values = [value for value in _leaves(images) if math.isfinite(value)]
    low, high = min(values, default=0.0), max(values, default=1.0)
    width = high - low or 1.0

    def level(value: float) -> int:
        return round(255 * (value - low) / width) if math.isfinite(value) else 0

    def pixel(value: Any) -> list[int]:
        return [level(part) for part in value] if isinstance(value, (list, tuple)) else [level(value)]

    return [[[pixel(value) for value in row] for row in image] for image in images], low, high


def _leaves(value: Any) -> Iterator[float]:
    if isinstance(value, Iterable):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield float(value)
