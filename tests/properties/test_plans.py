"""Whatever a plan of initialization is built of: finite weights, or an error that teaches."""

from __future__ import annotations

import math
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


RULES = st.fixed_dictionaries(
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


def law(rules: list[dict[str, Any]], wild: bool) -> None:
    layers = nn.ModuleList(
        [nn.Linear(3, 2), nn.Conv1d(4, 2, 3, groups=2), nn.LSTM(2, 2), nn.Embedding(4, 2), nn.LayerNorm(2)]
    )
    try:
        initialize_(layers, InitPlan(rules))
    except (ValueError, TypeError) as error:
        assert " must be " in str(error) or " has no " in str(error) or "; did you mean" in str(error), error
        return
    spoken = [value for rule in rules for value in (rule.get("std"), rule.get("gain"), rule.get("forget_bias"))]
    if all(value is None or (math.isfinite(value) and abs(value) < 1e30) for value in spoken):
        assert all(torch.isfinite(parameter).all() for parameter in layers.parameters())
    else:
        assert not any(value is not None and not math.isfinite(value) for value in spoken), "it is no number"


INPUTS = (st.lists(RULES, max_size=3), st.booleans())
test_finite_weights_or_an_error_that_teaches = few(law, *INPUTS, examples=60)
test_finite_weights_or_an_error_that_teaches_at_length = many(law, *INPUTS, examples=2000)
