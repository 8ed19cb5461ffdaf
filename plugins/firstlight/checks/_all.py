"""The list of checks, in the order of the step."""

from __future__ import annotations

from firstlight.checks import _data as data
from firstlight.checks import _environment as environment
from firstlight.checks import _gradient as gradient
from firstlight.checks import _loss as loss
from firstlight.checks import _model as model
from firstlight.checks import _progress as progress
from firstlight.checks import _update as update
from firstlight.checks import _watch as watch
from firstlight.checks._check import Check


def _in(*rooms: object) -> tuple[Check, ...]:
    found = [value for room in rooms for value in vars(room).values() if isinstance(value, type)]
    checks = [value() for value in found if issubclass(value, Check) and value is not Check]
    return tuple(sorted(checks, key=lambda check: check.code))


CHECKS = _in(environment, data, model, loss, gradient, update, progress)
"""What is asked before training."""

WATCH_CHECKS = (
    model.DeadUnits(),
    model.Saturation(),
    gradient.Vanishing(),
    update.NeverMoves(),
    *_in(watch),
)
"""What is asked while training."""
