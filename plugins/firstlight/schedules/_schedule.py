"""What every schedule is: a pure function of the optimizer step."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from typing_extensions import Self

from firstlight._require import require
from firstlight.schedules._duration import check_duration, in_steps, needs_total, resolved


class Schedule(ABC):
    """A factor of the base rate as a function of the optimizer step.

    Pure in the step: no state, so nothing to save and nothing that a resume could lose. Flat after the end.
    Durations are an int of optimizer steps, a float fraction of the run, ``"3ep"`` (epochs) or ``"500ba"``
    (training batches).

    Shapes: optimizer step to a number.
    Unit: factor of the base rate.
    Law: in [0, 1], and flat from ``total_steps`` on.
    Source: none; a base.

    >>> from firstlight.schedules import WarmupCosine
    >>> WarmupCosine(warmup="2ep").resolve(steps_per_epoch=100)
    WarmupCosine(warmup=200, floor=0.0)
    """

    _durations: ClassVar[tuple[str, ...]] = ("warmup",)
    _ends: ClassVar[bool] = False

    @abstractmethod
    def factor(self, step: int, total_steps: int | None = None) -> float:
        """Return the factor in [0, 1] of optimizer step ``step`` (0 is the first) in a run of ``total_steps``.

        Raises:
            ValueError: ``total_steps`` is missing though the schedule depends on it, or a duration such as
                ``"3ep"`` was not resolved.
        """

    @property
    def needs_total(self) -> bool:
        """Whether the factor depends on the length of the run."""
        return self._ends or any(needs_total(getattr(self, name)) for name in self._present())

    def check(self, total_steps: int) -> None:
        """Raise where this schedule does not fit into a run of ``total_steps``; its durations must be resolved.

        :meth:`factor` shortens what does not fit instead, so that a run of a few steps (a smoke test) still starts.

        Raises:
            ValueError: a warm-up longer than the run, or phases longer than the run together.
        """
        require(total_steps >= 1, "total_steps", total_steps, "one or more optimizer steps")
        name = " + ".join(self._phases())
        steps = sum(in_steps(phase, getattr(self, phase), total_steps) for phase in self._phases())
        require(
            steps <= total_steps,
            name,
            steps,
            f"at most the {total_steps} optimizer steps of the run; make it shorter, or a fraction such as 0.05",
        )

    def resolve(self, *, steps_per_epoch: float | None, steps_per_batch: float = 1.0) -> Self:
        """Return this schedule with durations in epochs and batches turned into optimizer steps.

        ``steps_per_epoch`` is ``None`` for a loader without a length; ``steps_per_batch`` is 1 over the gradient
        accumulation.
        """
        changes = {
            name: resolved(getattr(self, name), steps_per_epoch=steps_per_epoch, steps_per_batch=steps_per_batch)
            for name in self._present()
        }
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def __post_init__(self) -> None:
        for name in self._present():
            check_duration(name, getattr(self, name))

    def _phases(self) -> tuple[str, ...]:
        """Durations that stand one after another in the run."""
        return ("warmup",) if hasattr(self, "warmup") else ()

    def _present(self) -> tuple[str, ...]:
        return tuple(name for name in self._durations if hasattr(self, name))


def lr_lambda(schedule: Schedule, total_steps: int | None = None) -> Callable[[int], float]:
    """Return ``schedule`` as the function that :class:`torch.optim.lr_scheduler.LambdaLR` wants.

    Shapes: optimizer step to a number.
    Unit: factor of the base rate.
    Law: ``lr_lambda(schedule, total_steps)(step) == schedule.factor(step, total_steps)``.
    Source: none; an adapter.

    Raises:
        ValueError: the schedule needs ``total_steps`` or does not fit into them (a warm-up longer than the run).

    >>> from firstlight.schedules import CosineAnnealing
    >>> [round(lr_lambda(CosineAnnealing(), 4)(step), 4) for step in range(5)]
    [1.0, 0.8536, 0.5, 0.1464, 0.0]
    """
    if schedule.needs_total:
        require(
            total_steps is not None and total_steps >= 1,
            "total_steps",
            total_steps,
            "one or more optimizer steps",
        )
    if total_steps is not None:
        schedule.check(total_steps)
    return lambda step: schedule.factor(step, total_steps)
