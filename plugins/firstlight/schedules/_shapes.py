"""The classic shapes: constant, steps and cosine, with a warm-up; and the pieces that every shape is made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from firstlight._require import require
from firstlight.schedules._duration import Duration, in_steps
from firstlight.schedules._schedule import Schedule


def warmup_factor(step: int, warmup_steps: int) -> float:
    """Linear warm-up, ``(step + 1) / warmup_steps``: the first step already moves (a rate of 0 would waste it)."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


def cosine_factor(step: int, start: int, end: int, floor: float) -> float:
    """Half a cosine from 1 at ``start`` to ``floor`` at ``end``, flat on both sides."""
    if step <= start:
        return 1.0
    if step >= end:
        return floor
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * (step - start) / (end - start)))


def linear_factor(step: int, start: int, end: int, floor: float) -> float:
    """A straight line from 1 at ``start`` to ``floor`` at ``end``, flat on both sides."""
    if step <= start:
        return 1.0
    if step >= end:
        return floor
    return floor + (1.0 - floor) * (end - step) / (end - start)


def warmed(
    decay: Callable[[int, int, int, float], float],
    step: int,
    total_steps: int | None,
    *,
    warmup: Duration,
    floor: float,
) -> float:
    """Warm-up, then ``decay`` from its end to the end of the run; a warm-up longer than the run is shortened to it."""
    total = known(total_steps)
    start = min(in_steps("warmup", warmup, total), total)
    if step < start or start == total:
        return warmup_factor(step, start)
    return decay(step, start, total, floor)


def not_after(step: int, total_steps: int | None) -> int:
    """The step whose factor holds at ``step``: after the end of a run of known length, the one right after it."""
    return step if total_steps is None else min(step, total_steps)


def check_floor(floor: float) -> None:
    require(0.0 <= floor <= 1.0, "floor", floor, "a fraction of the base rate in [0, 1]")


def known(total_steps: int | None) -> int:
    require(
        total_steps is not None and total_steps >= 1,
        "total_steps",
        total_steps,
        "one or more optimizer steps",
    )
    assert total_steps is not None
    return total_steps


@dataclass(frozen=True)
class Constant(Schedule):
    """The base rate, after an optional linear warm-up.

    Shapes: optimizer step to a number.
    Unit: factor of the base rate.
    Law: ``min(1, (step + 1) / warmup)``.
    Source: Goyal et al. 2017, arXiv:1706.02677 (warm-up).
    Raises: ``ValueError`` for a duration that is none.

    >>> [Constant(warmup=4).factor(step) for step in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """

    warmup: Duration = 0

    def factor(self, step: int, total_steps: int | None = None) -> float:
        return warmup_factor(not_after(step, total_steps), in_steps("warmup", self.warmup, total_steps))


@dataclass(frozen=True)
class StepDecay(Schedule):
    """Times ``gamma`` every ``every``; both clocks, of decay and of warm-up, start with the run.

    Shapes: optimizer step to a number.
    Unit: factor of the base rate.
    Law: ``gamma ** (step // every)``, as :class:`torch.optim.lr_scheduler.StepLR`, times the warm-up.
    Source: Krizhevsky et al. 2012; with warm-up, Goyal et al. 2017, arXiv:1706.02677.
    Raises: ``ValueError`` for a duration that is none, ``every`` of zero, ``gamma`` outside [0, 1].

    >>> [StepDecay(every=2, gamma=0.5).factor(step) for step in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    _durations = ("every", "warmup")

    every: Duration
    gamma: float = 0.1
    warmup: Duration = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.every not in (0, 0.0), "every", self.every, "above zero")
        require(0.0 <= self.gamma <= 1.0, "gamma", self.gamma, "a factor in [0, 1]")

    def factor(self, step: int, total_steps: int | None = None) -> float:
        step = not_after(step, total_steps)
        drops = step // in_steps("every", self.every, total_steps)
        return warmup_factor(step, in_steps("warmup", self.warmup, total_steps)) * float(self.gamma**drops)


@dataclass(frozen=True)
class CosineAnnealing(Schedule):
    """Half a cosine from the base rate to ``floor`` times it, over the whole run.

    Shapes: optimizer step to a number.
    Unit: factor of the base rate.
    Law: ``floor + (1 - floor) * (1 + cos(pi * step / total)) / 2``, and ``floor`` from ``total`` on, where
    :class:`torch.optim.lr_scheduler.CosineAnnealingLR` would rise again.
    Source: Loshchilov and Hutter 2017, arXiv:1608.03983.
    Raises: ``ValueError`` for a floor outside [0, 1], a run of unknown length.

    >>> [round(CosineAnnealing(floor=0.1).factor(step, 2), 2) for step in range(4)]
    [1.0, 0.55, 0.1, 0.1]
    """

    _ends = True

    floor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_floor(self.floor)

    def factor(self, step: int, total_steps: int | None = None) -> float:
        return cosine_factor(step, 0, known(total_steps), self.floor)


@dataclass(frozen=True)
class WarmupCosine(Schedule):
    """Linear warm-up, then half a cosine to ``floor`` times the base rate.

    Shapes: optimizer step to a number.
    Unit: factor of the base rate.
    Law: ``(step + 1) / warmup`` before step ``warmup``, a cosine from there to the end, then flat. A warm-up longer
    than the run is shortened to it.
    Source: Goyal et al. 2017, arXiv:1706.02677; Loshchilov and Hutter 2017, arXiv:1608.03983.
    Raises: ``ValueError`` for a duration that is none, a floor outside [0, 1], a run of unknown length.

    >>> [round(WarmupCosine(warmup=2).factor(step, 6), 3) for step in range(7)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
    """

    _ends = True

    warmup: Duration = 0.05
    floor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_floor(self.floor)

    def factor(self, step: int, total_steps: int | None = None) -> float:
        return warmed(cosine_factor, step, total_steps, warmup=self.warmup, floor=self.floor)
