"""The options of ``verify-resume``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jsonargparse.typing import PositiveInt

from firstlight.cli._errors import UsageError

NAMES = ("steps", "stop_at")


@dataclass(frozen=True)
class Verifying:
    """What was asked for, by the names of the options."""

    steps: int = 9
    stop_at: tuple[int, ...] = ()  # none: a step inside an epoch, and the end of one

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise UsageError(f"--steps must be 2 or more: one before the stop, one after; got {self.steps}")
        late = next((step for step in self.stop_at if step >= self.steps), None)
        if late is not None:
            raise UsageError(f"--stop_at {late} leaves no step to compare: it must be below --steps {self.steps}")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Verifying:
        """Return what was asked for among the values of a parsed command line."""
        stops = given["stop_at"]
        return cls(int(given["steps"]), tuple(sorted({stops} if isinstance(stops, int) else set(stops or ()))))


def add_options(parser: Any) -> None:
    """Give a parser the options of a verification."""
    steps = "optimizer steps to train; epochs are cut to two thirds of them, so that one ends in between"
    parser.add_argument("--steps", type=PositiveInt, default=9, help=steps)
    stops = "step to stop after, or [several] (default: one inside an epoch, and the end of an epoch)"
    parser.add_argument("--stop_at", type=PositiveInt | list[PositiveInt] | None, help=stops)
