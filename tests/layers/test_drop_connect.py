"""DropConnectLinear: the moments over masks, and inference that matches them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from firstlight.layers import DropConnectLinear


def draws(layer: DropConnectLinear, x: torch.Tensor, count: int = 20000) -> torch.Tensor:
    """Return training outputs for one input row, ``[count, out]``: each copy in the batch has a mask of its own."""
    return layer.train()(x.expand(count, -1)).detach().double()


@pytest.mark.parametrize("p", [0.2, 0.5, 0.8])
def test_moments_over_masks(p):
    """Mean ``(1 - p) W x + b`` and variance ``p (1 - p) W**2 x**2``, Wan et al. 2013, section 3.2."""
    layer = DropConnectLinear(30, 4, p)
    x = torch.randn(1, 30)
    mean, variance = layer.moments(x)
    torch.testing.assert_close(mean, (1 - p) * x @ layer.weight.T + layer.bias)
    torch.testing.assert_close(variance, p * (1 - p) * x**2 @ (layer.weight**2).T)
    seen = draws(layer, x)
    error = seen.std(0) / math.sqrt(len(seen))
    assert ((seen.mean(0) - mean.double().squeeze(0)).abs() < 5 * error).all()
    torch.testing.assert_close(seen.var(0), variance.double().squeeze(0), rtol=0.06, atol=0)


def test_a_row_against_all_masks():
    """Three weights, eight masks."""
    layer = DropConnectLinear(3, 1, 0.3, bias=False)
    x = torch.tensor([[1.0, -2.0, 0.5]])
    terms = (layer.weight * x).flatten().tolist()
    outcomes = []
    for pattern in range(8):
        kept = [pattern >> index & 1 for index in range(3)]
        probability = math.prod(0.7 if k else 0.3 for k in kept)
        outcomes.append((probability, sum(k * t for k, t in zip(kept, terms, strict=True))))
    expected = sum(q * value for q, value in outcomes)
    spread = sum(q * (value - expected) ** 2 for q, value in outcomes)
    mean, variance = layer.moments(x)
    assert mean.item() == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert variance.item() == pytest.approx(spread, rel=1e-5)


def test_inference_without_activation_is_the_mean():
    layer = DropConnectLinear(5, 3, 0.4).eval()
    x = torch.randn(7, 5)
    torch.testing.assert_close(layer(x), layer.moments(x)[0])


def relu_of_normal(mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """Closed form: ``mean Phi(mean / std) + std phi(mean / std)``."""
    std = variance.sqrt()
    normal = torch.distributions.Normal(0.0, 1.0)
    return mean * normal.cdf(mean / std) + std * normal.log_prob(mean / std).exp()


def test_inference_through_relu_against_the_closed_form():
    layer = DropConnectLinear(40, 50, 0.5, activation=nn.ReLU()).eval()
    x = torch.randn(20, 40)
    exact = relu_of_normal(*layer.moments(x)).detach()
    naive = torch.relu(layer.moments(x)[0]).detach()
    assert float((layer(x).detach() - exact).abs().max()) < 2e-3
    assert float((naive - exact).abs().max()) > 0.05, "relu of the mean is another number"


def test_inference_through_relu_against_training():
    layer = DropConnectLinear(60, 5, 0.5, activation=nn.ReLU())
    x = torch.randn(1, 60)
    seen = draws(layer, x)
    error = seen.std(0) / math.sqrt(len(seen))
    inference = layer.eval()(x).double().squeeze(0)
    assert ((seen.mean(0) - inference).abs() < 5 * error + 0.01 * seen.std(0)).all()


def test_quantiles_have_the_moments_of_the_normal():
    """A linear activation gives the mean exactly, a square one the variance too."""

    class Square(nn.Module):
        def forward(self, x):
            return x**2

    layer = DropConnectLinear(6, 4, 0.5, activation=Square(), num_samples=5).eval()
    x = torch.randn(3, 6)
    mean, variance = layer.moments(x)
    torch.testing.assert_close(layer(x), mean**2 + variance, rtol=1e-4, atol=1e-6)


def test_one_mask_a_sample_or_one_a_batch():
    x = torch.ones(6, 10)
    torch.manual_seed(0)
    own = DropConnectLinear(10, 8, 0.5)(x)
    shared = DropConnectLinear(10, 8, 0.5, mask_per="batch")(x)
    assert len(own.round(decimals=5).unique(dim=0)) == 6
    torch.testing.assert_close(shared, shared[:1].expand(6, 8))  # rows of one product may differ in their last bit


def test_leading_dimensions_and_the_bias():
    layer = DropConnectLinear(4, 3, 1.0)
    assert torch.equal(layer(torch.randn(2, 5, 4)), layer.bias.expand(2, 5, 3)), "the bias is never masked"
    assert DropConnectLinear(4, 3, 0.5, bias=False)(torch.randn(2, 5, 4)).shape == (2, 5, 3)


def test_p_zero_is_a_linear_layer():
    layer = DropConnectLinear(4, 3, 0.0)
    x = torch.randn(2, 4)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


def test_gradients_of_masked_weights_are_zero():
    layer = DropConnectLinear(50, 20, 0.5, mask_per="batch")
    layer(torch.ones(3, 50)).sum().backward()
    dropped = float((layer.weight.grad == 0).float().mean())
    assert dropped == pytest.approx(0.5, abs=0.06)
    assert set(layer.weight.grad.unique().tolist()) == {0.0, 3.0}


def test_inference_has_finite_gradients_at_zero_inputs():
    layer = DropConnectLinear(4, 3, 0.5, activation=nn.ReLU()).eval()
    x = torch.zeros(2, 4, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.isfinite().all()


def test_autocast_and_large_half_inputs():
    layer = DropConnectLinear(4, 3, 0.5, activation=nn.ReLU())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.train()(torch.randn(2, 4)).dtype == torch.bfloat16
        assert layer.eval()(torch.randn(2, 4)).dtype == torch.bfloat16
    half = layer.half().eval()
    assert half(torch.full((1, 4), 1000.0, dtype=torch.float16)).isfinite().all()  # the squares end beyond 65504
