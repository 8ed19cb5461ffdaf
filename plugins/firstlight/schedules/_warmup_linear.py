"""WarmupLinear: up to the base rate, then straight down."""

from __future__ import annotations

from dataclasses import dataclass

from firstlight.schedules._duration import Duration
from firstlight.schedules._schedule import Schedule
from firstlight.schedules._shapes import check_floor, linear_factor, warmed


@dataclass(frozen=True)
class WarmupLinear(Schedule):
    """Linear warm-up, then a straight line to ``floor`` times the base rate.

    Shapes: optimizer step to a number.
    Unit: factor of the base rate.
    Law: ``(step + 1) / warmup`` before step ``warmup``, then ``floor + (1 - floor) * (total - step) / (total -
    warmup)``, and ``floor`` from ``total`` on. A warm-up longer than the run is shortened to it.
    Source: Devlin et al. 2019, arXiv:1810.04805 (linear decay after a warm-up).
    Raises: ``ValueError`` for a duration that is none, a floor outside [0, 1], a run of unknown length.

    >>> [round(WarmupLinear(warmup=2).factor(step, 6), 3) for step in range(7)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """

    _ends = True

    warmup: Duration = 0.05
    floor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_floor(self.floor)

    def factor(self, step: int, total_steps: int | None = None) -> float:
        return warmed(linear_factor, step, total_steps, warmup=self.warmup, floor=self.floor)
