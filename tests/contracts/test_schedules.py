"""Laws of schedules, over every row: pure, within [0, 1], continuous where shapes join, flat after the end."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import pytest
from contracts.schedules_cases import ROWS

from firstlight._spec import build, spec_of
from firstlight.schedules import Constant, Schedule, lr_lambda
from firstlight.schedules._duration import in_steps

VARIANTS = [(name, schedule) for name, row in ROWS.items() for schedule in row.variants]
every_schedule = pytest.mark.parametrize(("name", "schedule"), VARIANTS, ids=lambda value: repr(value))


@every_schedule
@pytest.mark.parametrize("total", [1, 2, 3, 40, 1000])
def test_pure_within_bounds_and_never_wasting_the_first_step(name, schedule, total):
    factors = [schedule.factor(step, total) for step in range(total)]
    assert all(0.0 <= factor <= 1.0 for factor in factors)
    assert factors[0] > 0.0
    assert factors == [schedule.factor(step, total) for step in reversed(range(total))][::-1]


@every_schedule
@pytest.mark.parametrize("total", [1, 2, 3, 40, 1000])
def test_flat_after_the_end(name, schedule, total):
    assert len({schedule.factor(total + extra, total) for extra in (0, 1, 7, 1000)}) == 1


@pytest.mark.parametrize(("name", "schedule"), [v for v in VARIANTS if not ROWS[v[0]].jumps], ids=lambda v: repr(v))
@pytest.mark.parametrize("total", [2000, 20_000])
def test_continuous(name, schedule, total):
    """A jump would not shrink with the length of the run: no step changes more than the shortest phase asks for."""
    factors = [schedule.factor(step, total) for step in range(total + 10)]
    phases = [in_steps(d, getattr(schedule, d), total) for d in schedule._durations if hasattr(schedule, d)]
    shortest = min(steps for steps in (*phases, total / 5) if steps > 0)
    assert max(abs(b - a) for a, b in itertools.pairwise(factors)) <= 1.6 / max(1, shortest - 1)


@every_schedule
def test_plain_frozen_values(name, schedule):
    """Comparable, hashable, and written into a checkpoint as plain values that build it again."""
    assert isinstance(schedule, Schedule)
    assert type(schedule).__name__ == name
    assert dataclasses.replace(schedule) == schedule
    assert hash(copy.deepcopy(schedule)) == hash(schedule)
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.warmup = 3
    assert build(spec_of(schedule), base=Schedule, name="schedule") == schedule


@every_schedule
def test_resolving_what_is_resolved_changes_nothing(name, schedule):
    assert schedule.resolve(steps_per_epoch=10) == schedule


@every_schedule
def test_needs_total_tells_the_truth(name, schedule):
    if schedule.needs_total:
        with pytest.raises(ValueError, match="total_steps"):
            [schedule.factor(step) for step in range(2000)]
    else:
        assert [schedule.factor(step) for step in range(40)] == [schedule.factor(step, 40) for step in range(40)]


def test_lr_lambda_is_the_factor():
    assert [lr_lambda(Constant(warmup=4), 10)(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
