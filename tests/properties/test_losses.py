"""Finite inputs of any magnitude give a finite loss and finite gradients, wherever float32 can hold the answer."""

from __future__ import annotations

import torch
from contracts.losses_cases import ROWS, Row
from contracts.test_losses import asking_gradients, cast, compute, gradients
from hypothesis import strategies as st
from properties.amounts import few, many
from torch import Tensor

LARGEST = 1e37  # of an answer that float32 holds, with room for the sums on the way
TORCHS_OWN = ("KLDivLoss", "SmoothL1Loss", "GaussianNLLLoss", "NLLLoss")  # not ours to mend
# As far as ten to this power: float32 holds no square of a larger distance; torch's recursion over log-probabilities
# loses its digits, and then the sign of a probability's logarithm.
FARTHEST = {"TripletLoss": 18, "CTCLoss": 6}
CASES = [
    (name, row, options)
    for name, first in ROWS.items()
    if name not in TORCHS_OWN and name == next(n for n, other in ROWS.items() if other is first)
    for row in (first, *first.also)
    for options in row.variants
]


def law(case: tuple[str, Row, dict[str, object]], exponents: tuple[int, ...], seed: int, ties: bool) -> None:
    name, row, options = case
    generator = torch.Generator().manual_seed(seed)
    inputs = list(row.inputs())
    for index, exponent in zip(row.differentiable, exponents, strict=False):
        values = torch.randn(inputs[index].shape, generator=generator, dtype=torch.float64)
        values = values.sign() if ties else values
        inputs[index] = (values * 10.0 ** min(exponent, FARTHEST.get(name, 36))).float().double()
    exact = answers(row, options, tuple(inputs))
    assert not any(answer.isnan().any() for answer in exact), "in float64"
    if all(answer.isfinite().all() and answer.abs().max() < LARGEST for answer in exact):
        assert all(answer.isfinite().all() for answer in answers(row, options, cast(tuple(inputs), torch.float32)))


def answers(row: Row, options: dict[str, object], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    inputs = asking_gradients(row, inputs)
    value = compute(row, options, inputs)
    return [value.detach(), *gradients(row, value, inputs)]


EXPONENTS = st.tuples(*[st.one_of(st.integers(-3, 5), st.integers(-38, 37))] * 3)
INPUTS = (st.sampled_from(CASES), EXPONENTS, st.integers(0, 2**31), st.booleans())
test_finite_in_finite_out = few(law, *INPUTS, examples=150)
test_finite_in_finite_out_at_length = many(law, *INPUTS, examples=5000)
