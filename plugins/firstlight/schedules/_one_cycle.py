"""OneCycle: up to the base rate and down again, once."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

from firstlight._require import require
from firstlight.schedules._duration import Duration, in_steps
from firstlight.schedules._schedule import Schedule
from firstlight.schedules._shapes import check_floor, known


@dataclass(frozen=True)
class OneCycle(Schedule):
    """From ``start`` up to the base rate within ``warmup``, and down to ``floor`` at the last step of the run.

    The base rate is the highest of the cycle. Momentum stays as it is: that of
    :class:`torch.optim.lr_scheduler.OneCycleLR` goes up and down against the rate, unasked.

    Shapes: optimizer step to a number.
    Unit: factor of the base rate.
    Law: the rates of :class:`torch.optim.lr_scheduler.OneCycleLR` with ``pct_start=warmup``, ``div_factor=1 / start``
    and ``final_div_factor=start / floor``, flat after the end, where torch's raises.
    Source: Smith and Topin 2017, arXiv:1708.07120.
    Raises: ``ValueError`` for a duration that is none, ``start`` or ``floor`` outside [0, 1], a run of unknown length.

    Args:
        warmup: how long the rate goes up.
        start: factor of the first step.
        floor: factor of the last step and after.
        shape: half a cosine up and down, or straight lines as in the paper.
        three_phase: down to ``start`` as fast as it went up, and to ``floor`` over the rest, as in the paper.

    >>> [round(OneCycle(warmup=3, start=0.2, floor=0.0, shape="linear").factor(step, 7), 3) for step in range(8)]
    [0.2, 0.6, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """

    _ends = True

    warmup: Duration = 0.3
    start: float = 0.04
    floor: float = 4e-6
    shape: Literal["cosine", "linear"] = "cosine"
    three_phase: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0.0 < self.start <= 1.0, "start", self.start, "a fraction of the base rate in (0, 1]")
        check_floor(self.floor)
        require(self.shape in ("cosine", "linear"), "shape", self.shape, "'cosine' or 'linear'")

    def _phases(self) -> tuple[str, ...]:
        return ("warmup", "warmup") if self.three_phase else ("warmup",)

    def factor(self, step: int, total_steps: int | None = None) -> float:
        total = known(total_steps)
        last = total - 1
        peak = min(max(0, in_steps("warmup", self.warmup, total) - 1), last)
        corners = [(0, self.start), (peak, 1.0), (last, self.floor)]
        if self.three_phase and 2 * peak < last:
            corners.insert(2, (2 * peak, self.start))
        for (left, before), (right, after) in itertools.pairwise(corners):
            if step < right:
                return self._between(before, after, (step - left) / (right - left))
        return self.floor if peak < last else 1.0

    def _between(self, before: float, after: float, passed: float) -> float:
        if self.shape == "linear":
            return before + (after - before) * passed
        return after + (before - after) * 0.5 * (1.0 + math.cos(math.pi * passed))
