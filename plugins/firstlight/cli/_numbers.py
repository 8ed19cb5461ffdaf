"""Numbers that no run can mean, which Lightning takes without a word."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from firstlight.cli._errors import UsageError

_BOUNDS: dict[str, tuple[int, float]] = {
    "seed_everything": (0, 2**32 - 1),  # what numpy takes
    "trainer.accumulate_grad_batches": (1, math.inf),
    "trainer.log_every_n_steps": (0, math.inf),
}


def refuse_senseless_numbers(config: dict[str, Any], where: Callable[[str], str]) -> None:
    """Refuse NaN anywhere, an infinite learning rate, counts below their least, and a limit that clips nothing.

    ``where`` tells the place that a key got its value from.

    Raises:
        UsageError: With the key.
    """
    for key, value in _numbers(config, ""):
        if math.isnan(value):
            raise UsageError(f"{key} is nan, which is no number", _in(where(key)), "null stands for none")
        if math.isinf(value) and key.rpartition(".")[2] == "lr":
            raise UsageError(f"{key} must be finite; got {value}", _in(where(key)))
    for key, (least, most) in _BOUNDS.items():
        group, _, name = key.rpartition(".")
        count = (config.get(group, {}) if group else config).get(name)
        if isinstance(count, int) and not isinstance(count, bool) and not least <= count <= most:
            bounds = f"{least} or more" if math.isinf(most) else f"from {least} to {most}"
            raise UsageError(f"{key} must be {bounds}; got {count}", _in(where(key)))
    key = "trainer.gradient_clip_val"
    clip = config.get("trainer", {}).get("gradient_clip_val")
    if isinstance(clip, (int, float)) and clip <= 0:
        raise UsageError(f"{key} must be above 0, or null to clip nothing; got {clip}", _in(where(key)))


def _in(place: str) -> str:
    return f"in {place}" if place else ""


def _numbers(value: Any, key: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _numbers(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _numbers(inner, f"{key}[{index}]")
    elif isinstance(value, float):
        yield key, value
