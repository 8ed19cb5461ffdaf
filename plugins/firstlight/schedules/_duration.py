"""Durations: an int of optimizer steps, a float fraction of the run, ``"3ep"`` epochs or ``"500ba"`` batches."""

from __future__ import annotations

import math
import re
from typing import TypeAlias

from firstlight._require import require

Duration: TypeAlias = int | float | str

_EXPECTED = "an int of optimizer steps, a float fraction of the run in [0, 1], or a string such as '3ep' or '500ba'"
_TEXT = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)(ep|ba)", re.ASCII)
_MOST_STEPS = 2**53  # a float counts them all; no run has more


def check_duration(name: str, value: Duration) -> None:
    """Raise ``ValueError`` unless ``value`` is a duration."""
    if isinstance(value, str):
        require(_TEXT.fullmatch(value) is not None, name, value, _EXPECTED)
    elif isinstance(value, float):
        require(0.0 <= value <= 1.0, name, value, _EXPECTED)
    else:
        require(
            isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_STEPS, name, value, _EXPECTED
        )


def needs_total(value: Duration) -> bool:
    """Whether ``value`` is known only once the length of the run is."""
    return isinstance(value, float) and value > 0


def in_steps(name: str, value: Duration, total_steps: int | None) -> int:
    """Return ``value`` in optimizer steps; at least 1 for a fraction above 0."""
    if isinstance(value, str):
        raise ValueError(
            f"{name}={value!r} counts epochs or batches, and only the trainer knows how many steps those are: "
            "call schedule.resolve(steps_per_epoch=..., steps_per_batch=...) first"
        )
    if isinstance(value, int) or value == 0:
        return int(value)
    require(
        total_steps is not None,
        "total_steps",
        total_steps,
        f"known, since {name}={value} is a fraction of it",
    )
    assert total_steps is not None
    return max(1, math.floor(value * total_steps + 0.5))


def resolved(value: Duration, *, steps_per_epoch: float | None, steps_per_batch: float) -> Duration:
    """Return a textual ``value`` in optimizer steps, and any other unchanged.

    Raises:
        ValueError: epochs whose number of steps is not known (an unsized loader).
    """
    if not isinstance(value, str):
        return value
    match = _TEXT.fullmatch(value)
    assert match is not None, value
    amount, unit = float(match[1]), match[2]
    if unit == "ba":
        return math.ceil(amount * steps_per_batch)
    require(steps_per_epoch is not None, "duration", value, "in steps or batches, since the loader has no length")
    assert steps_per_epoch is not None
    return math.ceil(amount * steps_per_epoch)
