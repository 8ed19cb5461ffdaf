"""ReconstructionLoss: a log-likelihood, summed over the sample."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Bernoulli, Laplace, Normal

from firstlight.losses import ReconstructionLoss

LIKELIHOODS = {
    "bernoulli": (lambda prediction: Bernoulli(logits=prediction, validate_args=False), 0.0),
    "gaussian": (lambda prediction: Normal(prediction, 1.0), math.log(2 * math.pi) / 2),
    "laplace": (lambda prediction: Laplace(prediction, 1.0), math.log(2)),
}


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_is_the_negative_log_likelihood_per_sample(likelihood):
    distribution, constant = LIKELIHOODS[likelihood]
    prediction, target = torch.randn(5, 3, 4), torch.rand(5, 3, 4)
    each = -(distribution(prediction).log_prob(target) + constant).sum((1, 2))
    for reduction, expected in (("none", each), ("mean", each.mean()), ("sum", each.sum())):
        loss = ReconstructionLoss(likelihood=likelihood, reduction=reduction)
        torch.testing.assert_close(loss(prediction, target), expected)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_scales_with_pixels_and_not_with_samples(likelihood):
    """The mean over pixels would divide beta of a VAE by their number."""
    loss = ReconstructionLoss(likelihood=likelihood)
    small = loss(torch.ones(2, 1, 4, 4), torch.zeros(2, 1, 4, 4))
    torch.testing.assert_close(loss(torch.ones(2, 1, 8, 8), torch.zeros(2, 1, 8, 8)), 4 * small)
    torch.testing.assert_close(loss(torch.ones(6, 1, 4, 4), torch.zeros(6, 1, 4, 4)), small)


def test_floor_of_grey_values_is_their_entropy():
    target = torch.rand(4, 6)
    entropy = (torch.special.entr(target) + torch.special.entr(1 - target)).sum(1).mean()
    torch.testing.assert_close(ReconstructionLoss().minimum(torch.zeros(4, 6), target), entropy)
    for likelihood in ("gaussian", "laplace"):
        assert ReconstructionLoss(likelihood=likelihood).minimum(torch.zeros(4, 6), target) == 0


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_one_value_per_sample_and_no_sample_at_all(likelihood):
    loss = ReconstructionLoss(likelihood=likelihood)
    assert loss(torch.zeros(3), torch.full((3,), 0.5)) > 0
    assert loss(torch.zeros(0, 4), torch.zeros(0, 4)) == 0
    assert ReconstructionLoss(likelihood=likelihood, reduction="none")(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (
        0,
    )
