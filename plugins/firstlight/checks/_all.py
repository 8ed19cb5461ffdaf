"""The list of checks, in the order of the step."""

from __future__ import annotations

from firstlight.checks import _data as data
from firstlight.checks import _gradient as gradient
from firstlight.checks import _loss as loss
from firstlight.checks import _model as model
from firstlight.checks import _progress as progress
from firstlight.checks import _update as update
from firstlight.checks._check import Check

CHECKS: tuple[Check, ...] = tuple(
    sorted(
        (
            value()
            for room in (data, model, loss, gradient, update, progress)
            for value in vars(room).values()
            if isinstance(value, type) and issubclass(value, Check) and value is not Check
        ),
        key=lambda check: check.code,
    )
)
