"""GaussianKLLoss: right near its zero, finite far from it, with both kinds of free bits."""

from __future__ import annotations

import mpmath
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from firstlight.losses import GaussianKLLoss, gaussian_kl_loss


def of_log_variance(v: float, dtype: torch.dtype = torch.float32) -> tuple[float, float]:
    log_variance = torch.tensor([[v]], dtype=dtype, requires_grad=True)
    loss = gaussian_kl_loss(torch.zeros(1, 1, dtype=dtype), log_variance)
    loss.backward()
    return loss.item(), log_variance.grad.item()


def test_reference_values():
    assert gaussian_kl_loss(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2)) == 0.5
    assert of_log_variance(torch.tensor(4.0, dtype=torch.float64).log().item(), torch.float64)[0] == pytest.approx(
        0.80685281944, rel=1e-10
    )
    assert of_log_variance(-100.0) == (49.5, -0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("v", [1e-6, -1e-4, 1e-4, 1e-2, -0.3, 0.49, 0.51, -0.49, -0.51, 2.0, 10.0, -30.0, 59.0])
def test_relative_error_against_many_digits(v, dtype):
    """The plain formula gives 8.3e-9 for 2.5e-9 at 1e-4 in float32."""
    v = torch.tensor(v, dtype=dtype).item()
    mpmath.mp.dps = 40
    truth = (mpmath.exp(v) - 1 - mpmath.mpf(v)) / 2, mpmath.expm1(v) / 2
    assert of_log_variance(v, dtype) == pytest.approx(tuple(map(float, truth)), rel=4 * torch.finfo(dtype).eps)


def test_equals_torch_distributions():
    mean, log_variance = torch.randn(5, 3, 2), torch.randn(5, 3, 2)
    each = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum((1, 2))
    for reduction, expected in (("none", each), ("mean", each.mean()), ("sum", each.sum())):
        torch.testing.assert_close(gaussian_kl_loss(mean, log_variance, reduction=reduction), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("v", [100.0, -100.0, 1e4, -1e4])
def test_a_variance_gone_wild_is_finite_and_comes_back(dtype, v):
    log_variance = torch.full((4, 8), v, dtype=dtype, requires_grad=True)
    loss = gaussian_kl_loss(torch.zeros_like(log_variance), log_variance)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(log_variance.grad).all()
    assert (log_variance.grad.sign() == (1 if v > 0 else -1)).all(), "a clamp would leave it where it is"


def test_the_tangent_continues_the_exponential_without_a_step():
    v = torch.tensor([[59.999], [60.0], [60.001]], requires_grad=True)
    loss = gaussian_kl_loss(torch.zeros(3, 1), v, reduction="none")
    (slope,) = torch.autograd.grad(loss.sum(), v)
    torch.testing.assert_close(loss / loss[1], torch.tensor([1 - 1e-3, 1, 1 + 1e-3]), rtol=1e-5, atol=0)
    torch.testing.assert_close(slope[2], slope[1])


# mean^2 / 2 is the divergence at variance 1: KL = [[.1, 2], [.9, 1]]
MEAN = (2 * torch.tensor([[0.1, 2.0], [0.9, 1.0]])).sqrt()


@pytest.mark.parametrize(("per", "expected"), [("dimension", 2.0), ("sample", 2.2)])
def test_free_bits_of_both_kinds(per, expected):
    loss = GaussianKLLoss(free_bits=0.5, free_bits_per=per)
    assert loss(MEAN, torch.zeros(2, 2)).item() == pytest.approx(expected, rel=1e-6)
    total = GaussianKLLoss(free_bits=0.5, free_bits_per=per, reduction="sum")
    assert total(MEAN, torch.zeros(2, 2)).item() == pytest.approx(2 * expected, rel=1e-6)


def test_free_bits_are_free():
    mean = torch.tensor([[0.1, 2.0], [0.2, 2.0]], requires_grad=True)
    gaussian_kl_loss(mean, torch.zeros(2, 2), free_bits=0.5).backward()
    assert (mean.grad[:, 0] == 0).all()
    assert (mean.grad[:, 1] == 1).all()


@pytest.mark.parametrize("per", ["dimension", "sample"])
@pytest.mark.parametrize("free_bits", [0.0, 0.5])
def test_no_sample_at_all(per, free_bits):
    mean = torch.zeros(0, 3, requires_grad=True)
    loss = gaussian_kl_loss(mean, torch.zeros(0, 3), free_bits=free_bits, free_bits_per=per)
    loss.backward()
    assert loss == 0
