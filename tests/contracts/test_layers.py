"""The laws of layers that regularize, over every row of the table."""

from __future__ import annotations

import math

import pytest
import torch
from contracts.layers_cases import BAD, ROWS, inputs
from torch import nn

import firstlight.layers as room
from firstlight._spec import build, spec_of

LAYERS = pytest.mark.parametrize("name", ROWS)


def test_every_public_name_has_a_row():
    assert set(ROWS) == set(room.__all__)


@pytest.mark.parametrize(("make", "error", "message"), BAD, ids=[row[2] for row in BAD])
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@LAYERS
def test_evaluation_draws_nothing(name):
    layer, x = ROWS[name].build(0.5).eval(), inputs(ROWS[name])
    before = torch.random.get_rng_state()
    output = layer(x)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(output, layer(x))
    if ROWS[name].identity:
        assert torch.equal(output, x)


@LAYERS
def test_at_strength_zero_training_is_evaluation(name):
    layer, x = ROWS[name].build(0.0), inputs(ROWS[name])
    trained = layer.train()(x)
    assert torch.equal(trained, layer.eval()(x))


@LAYERS
def test_training_follows_the_seed_and_changes_no_input(name):
    layer, x = ROWS[name].build(0.5).train(), inputs(ROWS[name])
    before = x.clone()
    torch.manual_seed(5)
    first = layer(x)
    second = layer(x)
    torch.manual_seed(5)
    assert torch.equal(first, layer(x))
    assert not torch.equal(first, second)
    assert torch.equal(x, before)
    assert first.shape == second.shape


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.unbiased])
def test_the_expectation_of_training_is_evaluation(name):
    """Over many draws, each value lies within 5 standard errors of the mean of all."""
    row = ROWS[name]
    layer, x = row.build(0.3), inputs(row)
    draws = torch.stack([layer.train()(x) for _ in range(4000)]).double()
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - layer.eval()(x)).abs() <= 5 * error + 1e-9).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@LAYERS
def test_the_dtype_stays(name, dtype):
    layer = ROWS[name].build(0.5).to(dtype)
    x = inputs(ROWS[name]).to(dtype)
    for mode in (layer.train(), layer.eval()):
        output = mode(x)
        assert output.dtype == dtype
        assert output.isfinite().all()


@LAYERS
def test_gradients_reach_what_was_kept(name):
    layer = ROWS[name].build(0.5).train()
    x = inputs(ROWS[name]).requires_grad_()
    layer(x).sum().backward()
    assert x.grad.isfinite().all()
    assert (x.grad != 0).any()


@pytest.mark.parametrize("name", [name for name in ROWS if name not in ("GaussianNoise", "DropConnectLinear")])
def test_strength_one_drops_everything(name):
    layer, x = ROWS[name].build(1.0).train(), inputs(ROWS[name])
    output = layer(x)
    assert torch.equal(output, torch.zeros_like(x)) or name == "AlphaDropout"
    assert output.isfinite().all()


@LAYERS
def test_a_layer_comes_back_from_plain_values(name):
    layer = ROWS[name].build(0.25)
    built = build(spec_of(layer), base=nn.Module, name="layer")
    assert type(built) is type(layer)
    assert repr(built) == repr(layer)


@pytest.mark.parametrize("name", [name for name in ROWS if name not in ("AlphaDropout", "Dropout")])
def test_it_compiles_as_one_graph_for_every_shape(name):
    torch._dynamo.reset()
    compiled = torch.compile(ROWS[name].build(0.5), backend="eager", fullgraph=True)
    shape = ROWS[name].shape
    for more in range(3):  # the second shape makes torch try symbolic sizes
        sizes = shape if len(shape) < 4 else (*shape[:2], shape[2] + more, shape[3] + 2 * more)
        x = torch.randn(sizes[0] + more, *sizes[1:])
        assert len(compiled(x)) == len(x)
