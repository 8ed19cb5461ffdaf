"""preview: what a schedule does, as a table and as a picture, before a run is spent on it."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstlight._require import require
from firstlight.schedules._schedule import Schedule

_BAR = 40


@dataclass(frozen=True, repr=False)
class Preview:
    """The factors of a schedule over a run: ``print`` shows a table, :meth:`save` draws a picture.

    Shapes: ``factors`` has one entry a step, ``total_steps + 1`` in all: the last is what holds after the end.
    Unit: factor of the base rate; with ``lr`` the table and the picture show rates.
    Law: ``factors[step] == schedule.factor(step, total_steps)``.
    Source: none; a reading.

    >>> from firstlight.schedules import Constant, preview
    >>> len(preview(Constant(), 10).factors)
    11
    """

    schedule: Schedule
    total_steps: int
    factors: tuple[float, ...]
    lr: float
    num_rows: int

    def table(self) -> str:
        """Return rows of step, rate and a bar, evenly over the run; the first and the last step are always there."""
        steps = sorted({round(row * self.total_steps / (self.num_rows - 1)) for row in range(self.num_rows)})
        width = max(len("step"), len(str(self.total_steps)))
        lines = [repr(self.schedule), f"{'step':>{width}}  {'rate':>9}"]
        for step in steps:
            factor = self.factors[step]
            bar = "#" * round(_BAR * factor)
            lines.append(f"{step:>{width}}  {self.lr * factor:>9.4g}  {bar}".rstrip())
        return "\n".join(lines)

    def figure(self) -> Any:
        """Return a :class:`matplotlib.figure.Figure` of the rate over the steps.

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            figures = importlib.import_module("matplotlib.figure")
        except ImportError as error:
            raise ImportError("the picture needs matplotlib: pip install 'firstlight[viz]'") from error
        figure = figures.Figure(figsize=(7.0, 3.0), layout="constrained")
        axes = figure.subplots()
        axes.plot(range(self.total_steps + 1), [self.lr * factor for factor in self.factors], color="#0072B2")
        axes.set(xlabel="optimizer step", ylabel="rate", xlim=(0, self.total_steps), ylim=(0, 1.05 * self.lr))
        # Long arguments (those of Joined) would run out of the picture.
        name = repr(self.schedule)
        axes.set_title(name if len(name) <= 90 else f"{type(self.schedule).__name__}(...)", fontsize="medium")
        axes.grid(color="#E6E6E6")
        axes.spines[["top", "right"]].set_visible(False)
        return figure

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Draw the picture into the file ``path`` (its ending says which kind) and return the path.

        Raises:
            ImportError: matplotlib is not installed.
        """
        self.figure().savefig(path, dpi=120)
        return Path(path)

    def __str__(self) -> str:
        return self.table()

    __repr__ = __str__


def preview(
    schedule: Schedule,
    total_steps: int,
    *,
    lr: float = 1.0,
    num_rows: int = 11,
    steps_per_epoch: float | None = None,
    steps_per_batch: float = 1.0,
) -> Preview:
    """Return what ``schedule`` does in a run of ``total_steps``, to be printed or drawn.

    Shapes: one factor a step and one for after the end.
    Unit: factor of the base rate, rates with ``lr``.
    Law: no state is touched: a schedule is a pure function of the step.
    Source: none; a reading.

    Args:
        schedule: what to look at.
        total_steps: length of the run in optimizer steps.
        lr: base rate, to see rates instead of factors.
        num_rows: length of the table.
        steps_per_epoch: needed for durations such as ``"3ep"``.
        steps_per_batch: 1 over the gradient accumulation, for durations such as ``"500ba"``.

    Raises:
        TypeError: not a schedule.
        ValueError: the schedule does not fit into the run, such as a warm-up that is longer.

    >>> from firstlight.schedules import WarmupLinear
    >>> print(preview(WarmupLinear(warmup=4), 20, lr=0.1, num_rows=6))
    WarmupLinear(warmup=4, floor=0.0)
    step       rate
       0      0.025  ##########
       4        0.1  ########################################
       8      0.075  ##############################
      12       0.05  ####################
      16      0.025  ##########
      20          0
    """
    require(isinstance(schedule, Schedule), "schedule", schedule, "a firstlight Schedule", error=TypeError)
    require(total_steps >= 1, "total_steps", total_steps, "one or more optimizer steps")
    require(lr > 0, "lr", lr, "above zero")
    require(num_rows >= 2, "num_rows", num_rows, "two or more")
    schedule = schedule.resolve(steps_per_epoch=steps_per_epoch, steps_per_batch=steps_per_batch)
    schedule.check(total_steps)
    factors = tuple(schedule.factor(step, total_steps) for step in range(total_steps + 1))
    return Preview(schedule=schedule, total_steps=total_steps, factors=factors, lr=lr, num_rows=num_rows)
