"""Whatever a schedule is built of and asked for: a factor in [0, 1], or an error that teaches."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import strategies as st
from properties.amounts import few, many, ours

from firstlight import schedules
from firstlight.schedules import Schedule, lr_lambda

NUMBERS = st.one_of(st.floats(0, 1), st.floats(), st.integers(-3, 3))
STEPS = st.one_of(st.integers(0, 50), st.integers(0, 10**6), st.integers(0, 10**18))
DURATIONS = st.one_of(
    STEPS,
    st.integers(0, 10**400),
    st.floats(0, 1),
    st.floats(),
    st.booleans(),
    st.integers(-3, 0),
    st.from_regex(r"\A[0-9]{1,3}(\.[0-9])?(ep|ba)\Z"),
    st.from_regex(r"\A[0-9]{400}ep\Z"),
    st.text(max_size=5),
)
ARGUMENTS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "Constant": {"warmup": DURATIONS},
    "StepDecay": {"every": DURATIONS, "gamma": NUMBERS, "warmup": DURATIONS},
    "CosineAnnealing": {"floor": NUMBERS},
    "WarmupCosine": {"warmup": DURATIONS, "floor": NUMBERS},
    "WarmupLinear": {"warmup": DURATIONS, "floor": NUMBERS},
    "WarmupInverseSqrt": {"warmup": DURATIONS},
    "WarmupStableDecay": {"warmup": DURATIONS, "decay": DURATIONS, "floor": NUMBERS},
    "OneCycle": {
        "warmup": DURATIONS,
        "start": NUMBERS,
        "floor": NUMBERS,
        "shape": st.one_of(st.sampled_from(["cosine", "linear"]), st.text(max_size=3)),
        "three_phase": st.booleans(),
    },
}
Plan = tuple[Any, ...]
ONE = st.one_of(*[st.tuples(st.just(name), st.fixed_dictionaries(given)) for name, given in ARGUMENTS.items()])
PLANS = st.recursive(
    ONE,
    lambda inner: st.tuples(
        st.just("Joined"),
        st.fixed_dictionaries(
            {"schedules": st.lists(inner, max_size=3), "boundaries": st.lists(DURATIONS, max_size=2)}
        ),
    ),
    max_leaves=4,
)
TOTALS = st.one_of(st.none(), st.integers(-2, 60), st.integers(1, 10**6), st.integers(1, 10**18))


def build(plan: Plan) -> Schedule:
    name, arguments = plan
    if name == "Joined":
        arguments = arguments | {"schedules": [build(inner) for inner in arguments["schedules"]]}
    made: Schedule = getattr(schedules, name)(**arguments)
    return made


def law(plan: Plan, step: int, total: int | None, per_epoch: float | None) -> None:
    try:
        schedule = build(plan).resolve(steps_per_epoch=per_epoch, steps_per_batch=0.5)
    except ValueError as error:
        assert ours(error), error
        return
    try:
        factor = schedule.factor(step, total)
    except ValueError as error:
        assert ours(error), error
    else:
        assert math.isfinite(factor)
        assert 0.0 <= factor <= 1.0
    try:
        function = lr_lambda(schedule, total)
    except ValueError as error:
        assert ours(error), error
    else:
        assert function(step) == schedule.factor(step, total)


INPUTS = (PLANS, STEPS, TOTALS, st.one_of(st.none(), st.floats(0.5, 1e6)))
test_a_factor_or_an_error_that_teaches = few(law, *INPUTS, examples=100)
test_a_factor_or_an_error_that_teaches_at_length = many(law, *INPUTS, examples=5000)


def test_every_public_schedule_is_asked() -> None:
    made = {name for name in schedules.__all__ if isinstance(getattr(schedules, name), type)}
    kinds = {name for name in made if issubclass(getattr(schedules, name), Schedule)} - {"Schedule"}
    assert {*ARGUMENTS, "Joined"} == kinds
