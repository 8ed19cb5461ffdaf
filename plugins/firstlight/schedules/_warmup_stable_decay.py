"""WarmupStableDecay: a plateau that can be left at any time."""

from __future__ import annotations

from dataclasses import dataclass

from firstlight.schedules._duration import Duration, in_steps
from firstlight.schedules._schedule import Schedule
from firstlight.schedules._shapes import check_floor, known, linear_factor, warmup_factor


@dataclass(frozen=True)
class WarmupStableDecay(Schedule):
    """Linear warm-up, the base rate for most of the run, then a straight line to ``floor`` over the last ``decay``.

    Every checkpoint of the plateau can start a decay of its own, so that one run serves several lengths.

    Shapes: optimizer step to a number.
    Unit: factor of the base rate.
    Law: ``(step + 1) / warmup``, then 1, then ``floor + (1 - floor) * (total - step) / decay``, and ``floor`` from
    ``total`` on. In a run too short for both, the warm-up goes first and the decay has the rest.
    Source: Hu et al. 2024, arXiv:2404.06395 (the three phases); Hägele et al. 2024, arXiv:2405.18392 (the line).
    Raises: ``ValueError`` for a duration that is none, a floor outside [0, 1], a run of unknown length.

    >>> [WarmupStableDecay(warmup=2, decay=4).factor(step, 10) for step in range(11)]
    [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """

    _durations = ("warmup", "decay")
    _ends = True

    warmup: Duration
    decay: Duration
    floor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_floor(self.floor)

    def _phases(self) -> tuple[str, ...]:
        return ("warmup", "decay")

    def factor(self, step: int, total_steps: int | None = None) -> float:
        total = known(total_steps)
        warmup = min(in_steps("warmup", self.warmup, total), total)
        decay = min(in_steps("decay", self.decay, total), total - warmup)
        if step < warmup or decay == 0:
            return warmup_factor(min(step, total), warmup)
        return linear_factor(step, total - decay, total, self.floor)
