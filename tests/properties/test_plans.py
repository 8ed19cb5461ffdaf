"""Whatever a plan of initialization is built of: finite weights, or an error that teaches."""

from __future__ import annotations

from typing import Any, get_args

import torch
from hypothesis import strategies as st
from properties.amounts import few, many
from torch import nn

from firstlight.initializers import InitPlan, initialize_
from firstlight.initializers._gain import FEEDS
from firstlight.initializers._plan import Distribution, Fan, LayerKind, Scheme

WORDS = st.text(max_size=4)
NUMBERS = st.one_of(st.none(), st.floats(0, 2), st.floats(), st.integers(-2, 2))


def words(*known: str) -> st.SearchStrategy[str]:
    return st.one_of(st.sampled_from(known), st.sampled_from(known), WORDS)


ANYTHING = st.fixed_dictionaries(
    {"scheme": words(*get_args(Scheme))},
    optional={
        "kinds": st.one_of(st.lists(words(*get_args(LayerKind)), max_size=2), WORDS),
        "feeds": st.one_of(st.lists(words(*FEEDS), max_size=2), WORDS),
        "names": st.one_of(st.none(), st.sampled_from(["*", "0", "[", "[!", "**?"]), WORDS),
        "fan": words(*get_args(Fan)),
        "distribution": words(*get_args(Distribution)),
        "std": NUMBERS,
        "gain": NUMBERS,
        "forget_bias": st.one_of(st.floats(-2, 2), st.floats()),
        "sdt": WORDS,
    },
)


# Most of anything is refused at its first word; these are refused for their numbers alone.
SANE = st.fixed_dictionaries(
    {"scheme": st.sampled_from(["he", "xavier", "lecun", "orthogonal", "ones", "zeros", "keep"])},
    optional={
        "kinds": st.lists(st.sampled_from(get_args(LayerKind)), max_size=2),
        "names": st.sampled_from(["*", "0", "[", "[!", "**?"]),
        "distribution": st.sampled_from(get_args(Distribution)),
        "gain": st.one_of(st.floats(0.1, 2), st.floats()),
    },
)
SPREAD = st.fixed_dictionaries({"scheme": st.just("normal"), "std": st.one_of(st.floats(0, 2), st.floats())})
GATES = st.fixed_dictionaries(
    {
        "scheme": st.just("gates"),
        "kinds": st.just(["recurrent"]),
        "forget_bias": st.one_of(st.floats(-2, 2), st.floats()),
    }
)
RULES = st.one_of(SANE, SPREAD, GATES, ANYTHING)


def law(rules: list[dict[str, Any]]) -> None:
    layers = nn.ModuleList(
        [nn.Linear(3, 2), nn.Conv1d(4, 2, 3, groups=2), nn.LSTM(2, 2), nn.Embedding(4, 2), nn.LayerNorm(2)]
    )
    try:
        initialize_(layers, InitPlan(rules))
    except (ValueError, TypeError) as error:
        assert " must be " in str(error) or " has no " in str(error) or "; did you mean" in str(error), error
        return
    assert all(torch.isfinite(parameter).all() for parameter in layers.parameters())


INPUTS = (st.lists(RULES, min_size=1, max_size=3),)
test_finite_weights_or_an_error_that_teaches = few(law, *INPUTS, examples=60)
test_finite_weights_or_an_error_that_teaches_at_length = many(law, *INPUTS, examples=2000)
