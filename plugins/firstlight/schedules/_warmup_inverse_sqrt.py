"""WarmupInverseSqrt: the schedule of the Transformer, which needs no end."""

from __future__ import annotations

import math
from dataclasses import dataclass

from firstlight._require import require
from firstlight.schedules._duration import Duration, in_steps
from firstlight.schedules._schedule import Schedule
from firstlight.schedules._shapes import not_after, warmup_factor


@dataclass(frozen=True)
class WarmupInverseSqrt(Schedule):
    """Linear warm-up, then one over the square root of the step: a run may go on as long as it likes.

    Shapes: optimizer step to a number.
    Unit: factor of the base rate, the rate at the end of the warm-up (the paper's is ``(d_model * warmup) ** -0.5``).
    Law: with s = step + 1, ``min(s / warmup, sqrt(warmup / s))``; flat after the end of a run of known length.
    Source: Vaswani et al. 2017, arXiv:1706.03762.
    Raises: ``ValueError`` for a duration that is none, or no warm-up (the peak would be infinitely far away).

    >>> [round(WarmupInverseSqrt(warmup=4).factor(step), 3) for step in (0, 1, 3, 8, 15, 399)]
    [0.25, 0.5, 1.0, 0.667, 0.5, 0.1]
    """

    warmup: Duration

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.warmup not in (0, 0.0, "0ep", "0ba"), "warmup", self.warmup, "above zero, such as 1000 or 0.05")

    def factor(self, step: int, total_steps: int | None = None) -> float:
        step = not_after(step, total_steps)
        warmup = max(1, in_steps("warmup", self.warmup, total_steps))
        return warmup_factor(step, warmup) if step < warmup else math.sqrt(warmup / (step + 1))
