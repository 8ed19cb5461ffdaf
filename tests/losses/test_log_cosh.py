"""LogCoshLoss: right to 1e-6 of itself from the smallest errors to the largest."""

from __future__ import annotations

import mpmath
import pytest
import torch

from firstlight.losses import LogCoshLoss, log_cosh_loss

# mpmath, 30 digits
REFERENCE = {
    1e-4: 4.99999999167e-9,
    1e-3: 4.99999916667e-7,
    0.1: 0.00499168882165,
    1.0: 0.433780830483,
    5.0: 4.30689821834,
    100.0: 99.3068528194,
    1e6: 999999.306853,
}


def value(error: torch.Tensor) -> torch.Tensor:
    return log_cosh_loss(error, torch.zeros_like(error), reduction="none")


@pytest.mark.parametrize("error", REFERENCE)
def test_reference_values(error):
    exact = value(torch.tensor([error, -error], dtype=torch.float64))
    torch.testing.assert_close(exact, torch.full((2,), REFERENCE[error], dtype=torch.float64), rtol=1e-11, atol=0)
    single = value(torch.tensor([error, -error]))
    torch.testing.assert_close(single.double(), exact, rtol=1e-6, atol=0)


def test_relative_error_over_every_magnitude():
    errors = torch.cat([torch.logspace(-4, 6, 500), torch.linspace(0.9, 1.1, 201), torch.linspace(0.01, 3, 300)])
    mpmath.mp.dps = 30
    truth = [float(mpmath.log(mpmath.cosh(mpmath.mpf(float(error))))) for error in errors]
    torch.testing.assert_close(value(errors).double(), torch.tensor(truth, dtype=torch.float64), rtol=1e-6, atol=0)


def test_gradient_is_tanh_and_its_gradient_one_minus_tanh_squared():
    errors = torch.cat([torch.logspace(-4, 4, 200), -torch.logspace(-4, 4, 200), torch.zeros(1)]).requires_grad_()
    (first,) = torch.autograd.grad(value(errors).sum(), errors, create_graph=True)
    torch.testing.assert_close(first.detach(), errors.detach().tanh(), rtol=1e-6, atol=0)
    (second,) = torch.autograd.grad(first.sum(), errors)
    torch.testing.assert_close(second, 1 - errors.detach().tanh().square(), rtol=1e-5, atol=1e-6)


def test_agrees_with_optax():
    """Values of optax/losses/_regression_test.py, LogCoshTest."""
    prediction = torch.tensor([500.0, -2.0, -1.0, 0.5, 1.0])
    target = torch.tensor([-200.0, -1.5, 0.0, -1.0, 1.0])
    expected = torch.tensor([699.3068, 0.12011445, 0.4337809, 0.85544014, 0.0])
    ours = LogCoshLoss(reduction="none")(prediction, target)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_do_not_overflow(dtype):
    error = torch.tensor([-4e4], dtype=dtype, requires_grad=True)
    loss = log_cosh_loss(error, torch.zeros_like(error))
    loss.backward()
    torch.testing.assert_close(loss.detach(), error.detach().float().abs().sum() - 0.6931472)
    assert error.grad == -1
