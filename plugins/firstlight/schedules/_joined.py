"""Joined: schedules one after another."""

from __future__ import annotations

import dataclasses
import itertools
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from typing_extensions import Self

from firstlight._require import require
from firstlight.schedules._duration import Duration, check_duration, in_steps, needs_total, resolved
from firstlight.schedules._schedule import Schedule
from firstlight.schedules._shapes import not_after


@dataclass(frozen=True)
class Joined(Schedule):
    """Schedules one after another, each with a clock of its own.

    Each sees its own stretch as the whole run: step 0 is where it begins, and fractions are fractions of the stretch.
    Whether the rates meet at a boundary is up to you.

    Shapes: optimizer step to a number.
    Unit: factor of the base rate.
    Law: from ``boundaries[i - 1]`` to ``boundaries[i]``, ``schedules[i].factor(step - boundaries[i - 1], stretch)``, as
    :class:`torch.optim.lr_scheduler.SequentialLR`; flat after the end of a run of known length.
    Source: none; a construction.
    Raises: ``ValueError`` for other than one boundary less than schedules, and for boundaries that do not rise.

    Args:
        schedules: two or more, in order.
        boundaries: where the second one begins, and the third, counted from the start of the run.

    >>> from firstlight.schedules import Constant, CosineAnnealing
    >>> twice = Joined([Constant(warmup=2), CosineAnnealing()], boundaries=[4])
    >>> [round(twice.factor(step, 8), 3) for step in range(9)]
    [0.5, 1.0, 1.0, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
    """

    schedules: Sequence[Schedule]
    boundaries: Sequence[Duration]

    def __post_init__(self) -> None:
        # Tuples, whatever the sequence was (YAML has lists): a frozen value can be compared and hashed.
        for name in ("schedules", "boundaries"):
            require(not isinstance(getattr(self, name), str), name, getattr(self, name), "a list", error=TypeError)
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for schedule in self.schedules:
            require(isinstance(schedule, Schedule), "schedules", schedule, "of firstlight Schedules", error=TypeError)
        require(len(self.schedules) >= 2, "schedules", self.schedules, "two or more")
        count = len(self.schedules) - 1
        require(len(self.boundaries) == count, "boundaries", self.boundaries, f"{count}, one less than the schedules")
        for boundary in self.boundaries:
            check_duration("boundaries", boundary)
        for kind in (int, float):
            _check_rising([boundary for boundary in self.boundaries if isinstance(boundary, kind)])

    @property
    def needs_total(self) -> bool:
        """Whether a boundary is a fraction of the run, or the last schedule depends on its length."""
        return any(map(needs_total, self.boundaries)) or self.schedules[-1].needs_total

    def check(self, total_steps: int) -> None:
        starts = [0, *(in_steps("boundaries", boundary, total_steps) for boundary in self.boundaries)]
        _check_rising(starts)
        expected = f"inside the run of {total_steps} optimizer steps"
        require(starts[-1] < total_steps, "boundaries", self.boundaries, expected)
        for schedule, start, end in zip(self.schedules, starts, (*starts[1:], total_steps), strict=True):
            schedule.check(end - start)

    def resolve(self, *, steps_per_epoch: float | None, steps_per_batch: float = 1.0) -> Self:
        return dataclasses.replace(
            self,
            schedules=tuple(
                schedule.resolve(steps_per_epoch=steps_per_epoch, steps_per_batch=steps_per_batch)
                for schedule in self.schedules
            ),
            boundaries=tuple(
                resolved(boundary, steps_per_epoch=steps_per_epoch, steps_per_batch=steps_per_batch)
                for boundary in self.boundaries
            ),
        )

    def factor(self, step: int, total_steps: int | None = None) -> float:
        step = not_after(step, total_steps)
        starts = self._starts(total_steps)
        # At the very end the schedule that ran last goes on: one that would begin there has no step to run.
        index = bisect_right(starts, step if total_steps is None else min(step, total_steps - 1)) - 1
        last = index == len(starts) - 1
        end = total_steps if last else starts[index + 1]
        return self.schedules[index].factor(step - starts[index], None if end is None else end - starts[index])

    def _starts(self, total_steps: int | None) -> list[int]:
        starts = (in_steps("boundaries", boundary, total_steps) for boundary in self.boundaries)
        # In a run of a few steps boundaries meet or cross; a schedule that is left no stretch is skipped.
        return list(itertools.accumulate((0, *starts), max))


def _check_rising(boundaries: Sequence[float]) -> None:
    rising = all(before < after for before, after in itertools.pairwise(boundaries))
    require(rising, "boundaries", list(boundaries), "rising: each later than the one before")
