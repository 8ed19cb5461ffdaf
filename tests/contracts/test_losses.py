"""Laws that every loss keeps, over all rows of the table."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from contracts.losses_cases import ROWS, Inputs, Row
from torch import Tensor, nn

from firstlight import losses
from firstlight._spec import build, spec_of

HALF = (torch.bfloat16, torch.float16)


def cases(law: str) -> Iterator[Any]:
    """Yield every (row, options) that ``law`` holds for; an exemption may be for one option only, ``law:option``."""
    seen: list[Row] = []
    for name, row in ((name, row) for name, first in ROWS.items() for row in (first, *first.also)):
        if any(row is other for other in seen) or law in row.exempt:
            continue
        seen.append(row)
        for options in row.variants:
            if not any(f"{law}:{option}" in row.exempt for option in options):
                shown = ",".join(f"{key}={value}" for key, value in options.items())
                yield pytest.param(row, options, id=f"{name}({shown})")


def over_rows(applies: Callable[[Row], object] = lambda row: True) -> Callable[..., Any]:
    """Run a test over every row and option that it holds for, where ``applies(row)``."""

    def mark(test: Callable[..., None]) -> Callable[..., None]:
        found = [case for case in cases(test.__name__.removeprefix("test_")) if applies(case.values[0])]
        return pytest.mark.parametrize(("row", "options"), found)(test)

    return mark


def module_of(row: Row, options: dict[str, Any]) -> nn.Module:
    assert row.cls is not None
    return row.cls(**options)


def by_module(row: Row, options: dict[str, Any], inputs: Inputs) -> Tensor:
    return row.call(module_of(row, options), *inputs)


def by_function(row: Row, options: dict[str, Any], inputs: Inputs) -> Tensor:
    assert row.function is not None
    tensors = {
        key: torch.tensor(value, dtype=torch.float64) if isinstance(value, list) else value
        for key, value in options.items()
    }
    return row.function(*inputs, **tensors)


def compute(row: Row, options: dict[str, Any], inputs: Inputs) -> Tensor:
    return (by_function if row.cls is None else by_module)(row, options, inputs)


def asking_gradients(row: Row, inputs: Inputs) -> Inputs:
    return tuple(
        x.detach().clone().requires_grad_() if index in row.differentiable else x for index, x in enumerate(inputs)
    )


def cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    return tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)


def extremes(row: Row) -> Inputs:
    inputs = row.inputs()
    if row.extreme is not None:
        return row.extreme(inputs)
    return tuple(
        1e4 * torch.where(x >= 0, 1.0, -1.0).to(x) if index in row.differentiable else x
        for index, x in enumerate(inputs)
    )


def gradients(row: Row, value: Tensor, inputs: Inputs) -> list[Tensor]:
    return list(torch.autograd.grad(value.sum(), [inputs[index] for index in row.differentiable]))


def test_rows_name_their_loss_and_known_laws():
    """A row that names nothing, or an exemption for no law, would switch a test off without a word."""
    laws = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    for name, row in ROWS.items():
        assert getattr(losses, name) is row.cls or row.function is not None
        assert {law.partition(":")[0] for law in row.exempt} <= laws


@over_rows()
def test_gradcheck(row, options):
    inputs = asking_gradients(row, row.inputs())
    assert torch.autograd.gradcheck(lambda *x: compute(row, options, x), inputs)


@over_rows()
def test_gradgradcheck(row, options):
    inputs = asking_gradients(row, row.inputs())
    assert torch.autograd.gradgradcheck(lambda *x: compute(row, options, x), inputs)


@over_rows(lambda row: row.cls and row.function)
def test_function_equals_class(row, options):
    inputs = row.inputs()
    for reduction in row.reductions or (None,):
        extra = {} if reduction is None else {"reduction": reduction}
        ours = by_module(row, options | extra, inputs)
        torch.testing.assert_close(ours, by_function(row, options | extra, inputs), rtol=1e-12, atol=0)


@over_rows(lambda row: row.reductions)
def test_none_is_consistent_with_mean(row, options):
    inputs = row.inputs()
    mean, total, each = (compute(row, options | {"reduction": name}, inputs) for name in ("mean", "sum", "none"))
    assert mean.ndim == 0
    assert total.ndim == 0
    torch.testing.assert_close(each.mean(), mean, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(each.sum(), total, rtol=1e-12, atol=1e-15)


@over_rows()
def test_batch_order_is_irrelevant(row, options):
    inputs = row.inputs()
    dims = row.batch_dims or (0,) * len(inputs)
    size = next(x.shape[dim] for x, dim in zip(inputs, dims, strict=True) if dim is not None)
    order = torch.randperm(size)
    shuffled = tuple(x if dim is None else x.index_select(dim, order) for x, dim in zip(inputs, dims, strict=True))
    torch.testing.assert_close(compute(row, options, shuffled), compute(row, options, inputs), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@over_rows()
def test_finite_at_extremes(row, options, dtype):
    inputs = asking_gradients(row, cast(extremes(row), dtype))
    value = compute(row, options, inputs)
    assert torch.isfinite(value).all()
    for gradient in gradients(row, value, inputs):
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", HALF)
@over_rows()
def test_half_precision_is_only_in_the_inputs(row, options, dtype):
    """16-bit inputs give what the same numbers give in float32, also inside autocast, and the loss is float32."""
    rounded = cast(row.inputs(), dtype)
    expected = compute(row, options, cast(rounded, torch.float32))
    ours = compute(row, options, rounded)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-7)
    with torch.autocast("cpu", dtype):
        inside = compute(row, options, cast(rounded, torch.float32))
        assert inside.dtype == torch.float32
        torch.testing.assert_close(inside, expected, rtol=1e-6, atol=1e-7)


@over_rows(lambda row: row.best)
def test_perfect_prediction_is_not_beaten(row, options):
    best = row.best(row.inputs())
    floor = compute(row, options, best)
    for scale, seed in itertools.product((1e-3, 0.1, 1.0, 10.0), range(3)):
        generator = torch.Generator().manual_seed(seed)
        moved = tuple(
            x + scale * torch.randn(x.shape, generator=generator, dtype=x.dtype) if index in row.differentiable else x
            for index, x in enumerate(best)
        )
        assert compute(row, options, moved) >= floor - 1e-12 * (1 + abs(floor))


@over_rows(lambda row: hasattr(row.cls, "minimum"))
def test_minimum_is_the_value_at_the_best_prediction(row, options):
    inputs = row.inputs()
    floor = module_of(row, options).minimum(*inputs)
    assert not floor.requires_grad
    assert floor <= by_module(row, options, inputs)
    if row.best is not None:
        torch.testing.assert_close(floor, by_module(row, options, row.best(inputs)), rtol=1e-6, atol=1e-9)


@over_rows(lambda row: row.cls)
def test_spec_round_trip(row, options):
    loss = module_of(row, options)
    again = build(spec_of(loss), base=nn.Module, name="loss")
    assert type(again) is row.cls
    assert spec_of(again) == spec_of(loss)
    inputs = row.inputs()
    torch.testing.assert_close(row.call(again, *inputs), row.call(loss, *inputs), rtol=1e-6, atol=1e-9)


@over_rows(lambda row: row.cls)
def test_state_loads_as_weights_only(row, options):
    loss = module_of(row, options)
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    loss.load_state_dict(torch.load(file, weights_only=True))
